//go:build linux && amd64

package vfs

import (
	"crypto/rand"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is a synthesized file: Mode's type bits say which of the functions is set.
type Entry struct {
	Mode    uint32
	Ino     uint64
	Rdev    uint64
	Content func() []byte         // regular file: its bytes, made when it is opened
	Names   func() []Name         // directory
	Target  func() string         // symbolic link
	Jump    func() (*Open, error) // link that leads to an open file rather than a path
	Device  func() File           // character device
}

// Name is one name in a directory.
type Name struct {
	Name string
	Ino  uint64
	Type uint8 // DT_REG, DT_DIR, …
}

// booted is the time that synthesized files claim.
var booted = unix.NsecToTimespec(time.Now().UnixNano())

func (e *Entry) status() unix.Stat_t {
	return unix.Stat_t{
		Ino: e.Ino, Mode: e.Mode, Nlink: 1, Rdev: e.Rdev, Blksize: 4096,
		Atim: booted, Mtim: booted, Ctim: booted,
	}
}

func (e *Entry) isLink() bool { return e.Mode&unix.S_IFMT == unix.S_IFLNK }

// open returns the entry's File. The directory's names and the file's bytes
// are as they were now.
func (e *Entry) open() (File, error) {
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return newListing(e.status(), e.Names)
	case unix.S_IFCHR:
		return e.Device(), nil
	default:
		return newBytesFile(e.status(), e.Content)
	}
}

// device is a character device that never waits.
type device struct {
	stat  unix.Stat_t
	read  func(p []byte) (int, error)
	write func(p []byte) (int, error)
	blind bool // write looks at the length alone
}

func (d *device) ReadAt(p []byte, _ int64) (int, error)  { return d.read(p) }
func (d *device) WriteAt(p []byte, _ int64) (int, error) { return d.write(p) }
func (d *device) Stat() (unix.Stat_t, error)             { return d.stat, nil }
func (d *device) Close() error                           { return nil }

// IsDevice reports whether f is a character device: those can be read from anywhere.
func IsDevice(f File) bool {
	_, ok := f.(*device)
	return ok
}

func swallow(p []byte) (int, error) { return len(p), nil }

// Looks reports whether what is written to f is looked at: the devices that lose, or
// refuse, all of it do not.
func Looks(f File) bool {
	d, ok := f.(*device)
	return !ok || !d.blind
}

// Devices returns /dev: what every program expects, and nothing of the host's.
func Devices() map[string]*Entry {
	links := map[string]string{"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "fd": "/proc/self/fd"}
	all := map[string]*Entry{
		"null": character(1, 3, func([]byte) (int, error) { return 0, nil }, swallow),
		"zero": character(1, 5, func(p []byte) (int, error) { clear(p); return len(p), nil }, swallow),
		"full": character(1, 7, func(p []byte) (int, error) { clear(p); return len(p), nil },
			func([]byte) (int, error) { return 0, unix.ENOSPC }),
		"random":  character(1, 8, rand.Read, swallow),
		"urandom": character(1, 9, rand.Read, swallow),

		"userfaultfd": character(10, 126, func([]byte) (int, error) { return 0, unix.EINVAL }, func([]byte) (int, error) { return 0, unix.EINVAL }),
	}
	ino := uint64(100)
	for name, target := range links {
		ino++
		all[name] = &Entry{Mode: unix.S_IFLNK | 0o777, Ino: ino, Target: func() string { return target }}
	}
	// Of Namespace.Tmp, which is looked at first: this is its name in the list.
	all["shm"] = &Entry{Mode: unix.S_IFDIR | 0o1777, Ino: 2, Names: func() []Name { return nil }}
	all[""] = &Entry{Mode: unix.S_IFDIR | 0o755, Ino: 1, Names: func() []Name { return entryNames(all) }}
	return all
}

func character(major, minor uint32, read, write func([]byte) (int, error)) *Entry {
	e := &Entry{Mode: unix.S_IFCHR | 0o666, Ino: uint64(major)<<8 | uint64(minor), Rdev: unix.Mkdev(major, minor)}
	blind := major == 1 && minor <= 7 // null, zero, full
	e.Device = func() File { return &device{e.status(), read, write, blind} }
	return e
}

func entryNames(all map[string]*Entry) []Name {
	names := []Name{{".", 1, unix.DT_DIR}, {"..", 1, unix.DT_DIR}}
	for name, e := range all {
		if name != "" {
			names = append(names, Name{name, e.Ino, uint8(e.Mode >> 12)})
		}
	}
	return names
}
