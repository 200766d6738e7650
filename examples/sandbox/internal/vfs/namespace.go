//go:build linux && amd64

package vfs

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = 4096
	maxLinks = 40 // symbolic links followed in one lookup, as under Linux
)

// Namespace joins the guest's file systems. The zero value of Tmp or Devices is an empty one.
type Namespace struct {
	Tree    *Tree
	Tmp     *Tmpfs
	Devices map[string]*Entry
}

// Viewer is whose eyes a path is looked up with.
type Viewer struct {
	Cwd  string                           // canonical
	Proc func(rel string) (*Entry, error) // what lies below /proc: "" is the directory itself
}

// found is the end of a lookup: exactly one of host, entry and tmp is set.
type found struct {
	path  string
	host  *hostNode
	entry *Entry
	tmp   *tmpNode
}

func (f *found) close() {
	if f.host != nil {
		f.host.close()
	}
}

func (f *found) status() unix.Stat_t {
	switch {
	case f.host != nil:
		return f.host.stat
	case f.entry != nil:
		return f.entry.status()
	default:
		return f.tmp.status()
	}
}

// absolute joins a path to the viewer's directory, without cleaning it: what
// ".." means behind a symbolic link is for the lookup to say.
func (v *Viewer) absolute(p string) (string, error) {
	switch {
	case p == "":
		return "", unix.ENOENT
	case len(p) >= maxPath:
		return "", unix.ENAMETOOLONG
	case p[0] == '/':
		return p, nil
	}
	return strings.TrimSuffix(v.Cwd, "/") + "/" + p, nil
}

// lookup resolves a path. nofollow is unix.O_NOFOLLOW, or 0 to follow a link at the end.
func (ns *Namespace) lookup(v *Viewer, p string, nofollow int) (*found, error) {
	full, err := v.absolute(p)
	if err != nil {
		return nil, err
	}
	if last := p[strings.LastIndexByte(p, '/')+1:]; last == "" || last == "." || last == ".." {
		nofollow = 0 // "link/" and "link/." name what the link leads to
	}
	for range maxLinks {
		f, next, err := ns.step(v, full, nofollow)
		if err != nil {
			return nil, err
		}
		if f == nil {
			full = next
			continue
		}
		if st := f.status(); strings.HasSuffix(p, "/") && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			f.close()
			return nil, unix.ENOTDIR
		}
		return f, nil
	}
	return nil, unix.ELOOP
}

// step resolves full, or returns where it leads by a symbolic link or into
// another file system.
func (ns *Namespace) step(v *Viewer, full string, nofollow int) (f *found, next string, err error) {
	clean := path.Clean(full)
	if rel, ok := below(clean, "/proc"); ok {
		return ns.stepEntries(v.Proc, "/proc", rel, nofollow)
	}
	root, rel, inMemory := ns.inMemory(clean)
	if rel, ok := below(clean, "/dev"); ok && !inMemory {
		return ns.stepEntries(ns.device, "/dev", rel, nofollow)
	}
	if inMemory {
		n, rest, err := ns.Tmp.walk(root, rel)
		switch {
		case err == nil && n.isLink() && (rest != "" || nofollow == 0):
			dir, _ := splitPath(strings.TrimSuffix(clean, "/"+rest))
			return nil, path.Join(join(dir, n.target), rest), nil
		case err == nil:
			return &found{path: clean, tmp: n}, "", nil
		case err == errGone:
			return nil, "", unix.ENOENT
		case err != unix.ENOENT || root == ns.Tmp.shm:
			return nil, "", err
		}
	}
	host, err := ns.Tree.lookup(full, nofollow)
	if err == unix.ENOENT {
		if next, ok := ns.Tree.firstLink(full); ok {
			return nil, next, nil
		}
	}
	if err != nil {
		return nil, "", err
	}
	if mountOf(host.path) != mountOf(clean) {
		defer host.close()
		return nil, host.path, nil
	}
	return &found{path: host.path, host: host}, "", nil
}

// stepEntries walks synthesized files name by name, since any may be a link.
func (ns *Namespace) stepEntries(get func(string) (*Entry, error), mount, rel string, nofollow int) (*found, string, error) {
	names := strings.Split(rel, "/")
	for i := range names {
		at := strings.Join(names[:i+1], "/")
		e, err := get(at)
		if err != nil {
			return nil, "", err
		}
		last := i == len(names)-1
		switch {
		case e.isLink() && (!last || nofollow == 0) && !(last && e.Jump != nil):
			dir, _ := splitPath(mount + "/" + at)
			return nil, path.Join(join(dir, e.Target()), strings.Join(names[i+1:], "/")), nil
		case last:
			return &found{path: path.Join(mount, rel), entry: e}, "", nil
		case e.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, "", unix.ENOTDIR
		}
	}
	return nil, "", unix.ENOENT
}

func (ns *Namespace) device(rel string) (*Entry, error) {
	if e := ns.Devices[rel]; e != nil {
		return e, nil
	}
	return nil, unix.ENOENT
}

// inMemory tells what lies in memory: /tmp, where the host's shows through, and /dev/shm.
func (ns *Namespace) inMemory(clean string) (root *tmpNode, rel string, ok bool) {
	if ns.Tmp == nil {
		return nil, "", false
	}
	if rel, ok = below(clean, "/tmp"); ok {
		return ns.Tmp.root, rel, true
	}
	rel, ok = below(clean, "/dev/shm")
	return ns.Tmp.shm, rel, ok
}

// below cuts a mount point off a clean path.
func below(clean, mount string) (rel string, ok bool) {
	if clean == mount {
		return "", true
	}
	return strings.CutPrefix(clean, mount+"/")
}

// mountOf names the synthesized file system that a clean path lies in. /tmp is
// none of them: what the host has there shows through.
func mountOf(clean string) string {
	for _, mount := range []string{"/proc", "/dev"} {
		if _, ok := below(clean, mount); ok {
			return mount
		}
	}
	return ""
}

func join(dir, target string) string {
	if strings.HasPrefix(target, "/") {
		return target
	}
	return dir + "/" + target
}
