//go:build linux && amd64

package vfs

import (
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// chunkSize is the unit in which a file in memory grows: a file with a hole
	// of a terabyte costs its written chunks only.
	chunkSize = 64 << 10

	maxTmpNodes = 65536
	maxTmpSize  = 1 << 40
)

// Tmpfs is a small writable tree in memory, bounded in bytes and in files.
type Tmpfs struct {
	limit int64 // immutable

	mu    sync.Mutex
	used  int64 // bytes of chunks, guarded by mu
	nodes int   // guarded by mu
	ino   uint64
	root  *tmpNode
	shm   *tmpNode // of /dev/shm

	paged  map[*tmpNode]struct{} // those that have page caches
	ending []Pages               // for unlock to close
}

// tmpNode is a file, directory or symbolic link. Every field is guarded by
// Tmpfs.mu but those said to be immutable.
type tmpNode struct {
	fs       *Tmpfs // immutable
	ino      uint64 // immutable
	mode     uint32
	children map[string]*tmpNode // directory
	hidden   map[string]bool     // names of the host's that were removed: directory below /tmp
	opaque   bool                // no name of the host's shows: likewise
	target   string              // symbolic link; immutable
	fifo     *fifo               // pipe with a name; immutable
	chunks   map[int64][]byte    // file: by offset / chunkSize
	size     int64
	atime    unix.Timespec
	mtime    unix.Timespec
	ctime    unix.Timespec
	uid, gid uint32
	links    int // names that lead here

	appending sync.Mutex // held from looking where the end is until something is there

	opens  int    // descriptions that hold it
	seals  uint32 // of memfd_create; all files can be asked for them
	pages  Pages  // once it has been mapped, as long as it can be opened
	mapped bool   // there are pages over the chunks, or mappings of them
}

// NewTmpfs returns an empty tree that holds at most limit bytes.
func NewTmpfs(limit int64) *Tmpfs {
	fs := &Tmpfs{limit: limit, ino: 1 << 32, paged: make(map[*tmpNode]struct{})}
	fs.root = fs.newNodeLocked(unix.S_IFDIR | 0o1777)
	fs.shm = fs.newNodeLocked(unix.S_IFDIR | 0o1777)
	fs.root.links, fs.shm.links = 1, 1
	fs.nodes-- // a second root is no file of anybody's
	return fs
}

func (fs *Tmpfs) newNodeLocked(mode uint32) *tmpNode {
	fs.ino++
	fs.nodes++
	n := &tmpNode{fs: fs, ino: fs.ino, mode: mode, uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())}
	n.touchLocked()
	n.atime = n.mtime
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.children = make(map[string]*tmpNode)
	case unix.S_IFIFO:
		n.fifo = new(fifo)
	case unix.S_IFREG:
		n.chunks = make(map[int64][]byte)
		n.seals = unix.F_SEAL_SEAL
	}
	return n
}

// walk follows names from one of the roots. It does not follow symbolic links: it
// stops there and returns what is left, for the namespace to go on with.
func (fs *Tmpfs) walk(root *tmpNode, rel string) (n *tmpNode, rest string, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n = root
	for rel != "" {
		if n.isLink() {
			return n, rel, nil
		}
		var name string
		name, rel, _ = strings.Cut(rel, "/")
		if n, err = n.childLocked(name); n == nil {
			if err == nil {
				err = unix.ENOENT
			}
			return nil, "", err
		}
	}
	return n, "", nil
}

// create adds a node to a directory. EEXIST, ENOTDIR, ENOSPC.
func (fs *Tmpfs) create(dir *tmpNode, name string, mode uint32, target string) (*tmpNode, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case dir.children == nil:
		return nil, unix.ENOTDIR
	case dir.children[name] != nil:
		return nil, unix.EEXIST
	case dir.links == 0:
		return nil, unix.ENOENT
	case fs.nodes >= maxTmpNodes:
		return nil, unix.ENOSPC
	}
	n := fs.newNodeLocked(mode)
	n.links, n.target, n.size = 1, target, int64(len(target))
	n.opaque = dir.hidesLocked(name)
	dir.children[name] = n
	dir.touchLocked()
	return n, nil
}

// remove takes a name away: of a directory with AT_REMOVEDIR in flags, else of
// anything else.
func (fs *Tmpfs) remove(dir *tmpNode, name string, flags int) error {
	fs.mu.Lock()
	defer fs.unlock()
	n := dir.children[name]
	if n == nil {
		return unix.ENOENT
	}
	if err := n.removableLocked(flags); err != nil {
		return err
	}
	delete(dir.children, name)
	dir.touchLocked()
	n.unlinkLocked()
	return nil
}

func (n *tmpNode) removableLocked(flags int) error {
	switch wantDir := flags&unix.AT_REMOVEDIR != 0; {
	case wantDir && n.children == nil:
		return unix.ENOTDIR
	case !wantDir && n.children != nil:
		return unix.EISDIR
	case len(n.children) > 0:
		return unix.ENOTEMPTY
	}
	return nil
}

// rename moves a name, replacing what the new one leads to as renameat2(2) says.
func (fs *Tmpfs) rename(oldDir *tmpNode, oldName string, newDir *tmpNode, newName string, flags int) error {
	fs.mu.Lock()
	defer fs.unlock()
	n := oldDir.children[oldName]
	if n == nil {
		return unix.ENOENT
	}
	if newDir.children == nil {
		return unix.ENOTDIR
	}
	if n.containsLocked(newDir) {
		return unix.EINVAL
	}
	if old := newDir.children[newName]; old != nil {
		if flags&unix.RENAME_NOREPLACE != 0 {
			return unix.EEXIST
		}
		if old == n {
			return nil // two names of one file both stay
		}
		kind := 0
		if n.children != nil {
			kind = unix.AT_REMOVEDIR
		}
		if err := old.removableLocked(kind); err != nil {
			return err
		}
		old.unlinkLocked()
	}
	delete(oldDir.children, oldName)
	newDir.children[newName] = n
	oldDir.touchLocked()
	newDir.touchLocked()
	return nil
}

func (n *tmpNode) containsLocked(other *tmpNode) bool {
	if n == other {
		return true
	}
	for _, c := range n.children {
		if c.containsLocked(other) {
			return true
		}
	}
	return false
}

func (n *tmpNode) unlinkLocked() {
	n.links--
	n.reapLocked()
}

// reapLocked returns a node's bytes when no name and no description holds it.
func (n *tmpNode) reapLocked() {
	if n.links > 0 || n.opens > 0 {
		return
	}
	if n.fs.endPagesLocked(n); n.mapped {
		return // Raw.Release comes
	}
	n.fs.nodes--
	n.fs.used -= int64(len(n.chunks)) * chunkSize
	n.chunks = nil
}

func (n *tmpNode) isLink() bool { return n.mode&unix.S_IFMT == unix.S_IFLNK }

func (n *tmpNode) touchLocked() {
	n.mtime = now()
	n.ctime = n.mtime
}

func (n *tmpNode) status() unix.Stat_t {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	st := unix.Stat_t{
		Dev: 0x7f, Ino: n.ino, Mode: n.mode, Nlink: uint64(n.links), Size: n.sizeLocked(), Blksize: 4096,
		Uid: n.uid, Gid: n.gid,
		Blocks: int64(len(n.chunks)) * (chunkSize / 512), Atim: n.atime, Mtim: n.mtime, Ctim: n.ctime,
	}
	if n.children != nil && n.links > 0 {
		st.Size, st.Blocks = directorySize, directorySize/512
		for _, c := range n.children {
			if c.children != nil {
				st.Nlink++ // by its ".."
			}
		}
		st.Nlink++ // by its own "."
	}
	return st
}

// directorySize is what most of Linux's file systems say of a small directory.
const directorySize = 4096

// names lists a directory, with what a host directory of the same path shows beside it.
func (n *tmpNode) names(beside []Name) []Name {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	list := []Name{{".", n.ino, unix.DT_DIR}, {"..", n.ino, unix.DT_DIR}}
	for name, c := range n.children {
		list = append(list, Name{name, c.ino, uint8(c.mode >> 12)})
	}
	for _, b := range beside {
		if b.Name != "." && b.Name != ".." && n.children[b.Name] == nil && !n.hidesLocked(b.Name) {
			list = append(list, b)
		}
	}
	return list
}

// open returns a File over a regular file.
func (n *tmpNode) open(flags int) File {
	n.fs.mu.Lock()
	n.opens++
	n.fs.mu.Unlock()
	if flags&unix.O_TRUNC != 0 && flags&unix.O_ACCMODE != unix.O_RDONLY {
		_ = (&TmpFile{n}).Truncate(0)
	}
	return &TmpFile{n}
}

// splitPath returns the directory and the last name of a clean path.
func splitPath(p string) (dir, name string) {
	dir, name = path.Split(p)
	if dir != "/" {
		dir = strings.TrimSuffix(dir, "/")
	}
	return dir, name
}
