//go:build linux && amd64

package vfs

import (
	"time"

	"golang.org/x/sys/unix"
)

// KeepID is the owner or group that chown(2) leaves as it is.
const KeepID = ^uint32(0)

// Times are what utimensat(2) sets; nil leaves one as it is.
type Times struct{ Access, Modified *unix.Timespec }

// Node is a file in memory that is to be changed, without being opened.
type Node struct{ node *tmpNode }

// Node finds a file in memory, or takes one of the host's into it. EROFS for those of
// the other file systems.
func (ns *Namespace) Node(v *Viewer, p string, nofollow int) (Node, error) {
	f, err := ns.lookup(v, p, nofollow)
	if err != nil {
		return Node{}, err
	}
	defer f.close()
	n, err := ns.shadow(f, withBytes)
	return Node{n}, err
}

// NodeOf is Node of an open file: the same one, whatever its name leads to by now.
func (ns *Namespace) NodeOf(v *Viewer, o *Open) (Node, error) {
	if f, ok := o.File.(*TmpFile); ok {
		return Node{f.node}, nil
	}
	if o.Path == "" || o.Path[0] != '/' {
		return Node{}, unix.EROFS
	}
	return ns.Node(v, o.Path, 0)
}

// Chmod sets the permission bits.
func (n Node) Chmod(mode uint32) error {
	n.node.fs.mu.Lock()
	defer n.node.fs.mu.Unlock()
	n.node.mode = n.node.mode&unix.S_IFMT | mode&0o7777
	n.node.ctime = now()
	return nil
}

// Chown sets owner and group. EPERM for who is not root and would give the file away.
func (n Node) Chown(uid, gid uint32) error {
	n.node.fs.mu.Lock()
	defer n.node.fs.mu.Unlock()
	if unix.Geteuid() != 0 && (uid != KeepID && uid != n.node.uid || gid != KeepID && gid != n.node.gid) {
		return unix.EPERM
	}
	if uid != KeepID {
		n.node.uid = uid
	}
	if gid != KeepID {
		n.node.gid = gid
	}
	n.node.ctime = now()
	return nil
}

// SetTimes sets the times of access and modification.
func (n Node) SetTimes(t Times) error {
	n.node.fs.mu.Lock()
	defer n.node.fs.mu.Unlock()
	if t.Access != nil {
		n.node.atime = *t.Access
	}
	if t.Modified != nil {
		n.node.mtime = *t.Modified
	}
	n.node.ctime = now()
	return nil
}

// Link gives a file one more name. EXDEV for one that does not lie where the name
// is to be, EPERM for a directory.
func (ns *Namespace) Link(v *Viewer, from, to string, nofollow int) error {
	f, err := ns.lookup(v, from, nofollow)
	if err != nil {
		return err
	}
	defer f.close()
	if at, err := ns.lookup(v, to, unix.O_NOFOLLOW); err == nil {
		at.close()
		return unix.EEXIST
	}
	dir, name, _, err := ns.parent(v, to)
	if err != nil {
		return err
	}
	n, err := ns.shadow(f, withBytes)
	if err == unix.EROFS {
		return unix.EXDEV
	}
	if err != nil {
		return err
	}
	return dir.fs.link(n, dir, name)
}

func (fs *Tmpfs) link(n, dir *tmpNode, name string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case n.children != nil:
		return unix.EPERM
	case dir.children == nil:
		return unix.ENOTDIR
	case dir.children[name] != nil:
		return unix.EEXIST
	case n.links == 0, dir.links == 0:
		return unix.ENOENT
	}
	n.links++
	n.ctime = now()
	dir.children[name] = n
	dir.touchLocked()
	return nil
}

func now() unix.Timespec { return unix.NsecToTimespec(time.Now().UnixNano()) }
