//go:build linux && amd64

package vfs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// Below /tmp the host's files show through. What changes one of them gets a node of
// memory in its place first: a directory an empty one, behind which the host's names go
// on showing, a file its bytes. What is removed leaves its name in the directory's
// hidden set. Directories of the host are not renamed (EXDEV, upon which mv copies).

// bytesKept says whether a file gets its bytes, or is about to be cut anyway.
type bytesKept uint8

const (
	withBytes bytesKept = iota
	withoutBytes
)

// errGone says that a name is not there, whatever the host has behind it.
var errGone = errors.New("removed")

// shadow returns the node of memory for what was found. EROFS outside of /tmp.
func (ns *Namespace) shadow(f *found, kept bytesKept) (*tmpNode, error) {
	if f.tmp != nil {
		return f.tmp, nil
	}
	rel, ok := below(f.path, "/tmp")
	if f.host == nil || !ok || rel == "" || ns.Tmp == nil {
		return nil, unix.EROFS
	}
	fs, n, at := ns.Tmp, ns.Tmp.root, "/tmp"
	for names := strings.Split(rel, "/"); len(names) > 0; names = names[1:] {
		at += "/" + names[0]
		child, err := fs.child(n, names[0])
		switch {
		case err == errGone:
			return nil, unix.ENOENT
		case err != nil:
			return nil, err
		case child == nil && len(names) == 1:
			child, err = fs.adopt(n, names[0], f.host, kept)
		case child == nil:
			child, err = ns.adoptDirectory(n, names[0], at)
		}
		if err != nil {
			return nil, err
		}
		n = child
	}
	return n, nil
}

// adoptDirectory is adopt of a directory on the way.
func (ns *Namespace) adoptDirectory(dir *tmpNode, name, at string) (*tmpNode, error) {
	host, err := ns.Tree.lookup(at, unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer host.close()
	if host.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	return ns.Tmp.adopt(dir, name, host, withoutBytes)
}

// child returns what memory has under a name, nil where the host is to be asked. errGone,
// ENOTDIR.
func (fs *Tmpfs) child(dir *tmpNode, name string) (*tmpNode, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return dir.childLocked(name)
}

func (n *tmpNode) childLocked(name string) (*tmpNode, error) {
	switch c := n.children[name]; {
	case n.children == nil:
		return nil, unix.ENOTDIR
	case c != nil:
		return c, nil
	case n.hidesLocked(name):
		return nil, errGone
	}
	return nil, nil
}

// hidesLocked reports whether what the host has under a name is not to be seen.
func (n *tmpNode) hidesLocked(name string) bool { return n.opaque || n.hidden[name] }

// adopt puts a copy of a node of the host's into a directory. ENOSPC; EROFS for what is
// neither file, link nor directory.
func (fs *Tmpfs) adopt(dir *tmpNode, name string, host *hostNode, kept bytesKept) (*tmpNode, error) {
	fs.mu.Lock()
	if fs.nodes >= maxTmpNodes {
		fs.mu.Unlock()
		return nil, unix.ENOSPC
	}
	st := &host.stat
	n := fs.newNodeLocked(st.Mode)
	n.links, n.uid, n.gid = 1, st.Uid, st.Gid
	n.atime, n.mtime, n.ctime = st.Atim, st.Mtim, st.Ctim
	fs.mu.Unlock()
	err := error(nil)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		n.target, err = host.readlink()
		n.size = int64(len(n.target))
	case unix.S_IFREG:
		if kept == withBytes {
			err = fs.fill(n, host)
		}
	default:
		err = unix.EROFS
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	other, gone := dir.childLocked(name)
	switch {
	case err == nil && other == nil && gone == nil:
		dir.children[name] = n
		return n, nil
	case err == nil && gone != nil:
		err = unix.ENOENT
	}
	n.links = 0
	n.reapLocked()
	if err != nil {
		return nil, err
	}
	return other, nil // somebody was faster
}

// fill copies a file's bytes. Nobody else knows of the node yet.
func (fs *Tmpfs) fill(n *tmpNode, host *hostNode) error {
	f, err := host.open()
	if err != nil {
		return err
	}
	defer f.Close()
	for buf := make([]byte, chunkSize); ; {
		got, err := f.ReadAt(buf, n.size)
		if got == 0 || err != nil {
			return err
		}
		fs.mu.Lock()
		done, err := n.writeLocked(buf[:got], n.size)
		n.size += int64(done)
		fs.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// hostHas reports whether the host has a name behind one in memory.
func (ns *Namespace) hostHas(full string) bool {
	if _, ok := below(full, "/tmp"); !ok {
		return false
	}
	n, err := ns.Tree.lookup(full, unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	n.close()
	return true
}

// hide has a name be gone.
func (n *tmpNode) hide(name string) {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if n.hidden == nil {
		n.hidden = make(map[string]bool)
	}
	n.hidden[name] = true
	n.touchLocked()
}

// coverUp has a directory show nothing of the host's, wherever it is moved.
func (n *tmpNode) coverUp() {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	n.opaque = true
}

// isEmpty reports whether a directory shows no name, of memory or of the host.
func (ns *Namespace) isEmpty(f *found) bool {
	var names []Name
	if f.tmp != nil {
		names = f.tmp.names(ns.hostNames(f.path))
	} else {
		names = ns.hostNames(f.path)
	}
	for _, n := range names {
		if n.Name != "." && n.Name != ".." {
			return false
		}
	}
	return true
}
