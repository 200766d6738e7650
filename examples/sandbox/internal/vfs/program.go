//go:build linux && amd64

package vfs

import (
	"io"

	"golang.org/x/sys/unix"
)

// Program is a File that can be executed: one of the host's, or one in memory.
type Program interface {
	File
	Sizer
	CanExecute() bool

	// Content reads the file as it is now, with io.EOF at its end.
	Content() io.ReaderAt

	// Again opens the file once more, with an owner of its own.
	Again() (Program, error)
}

// OpenExec opens a program: a regular file, or one that a link in /proc leads to.
// EACCES without permission to execute.
func (ns *Namespace) OpenExec(v *Viewer, p string) (f Program, path string, err error) {
	o, err := ns.Open(v, p, unix.O_RDONLY, 0)
	if err != nil {
		return nil, "", err
	}
	defer o.Unref()
	file, ok := o.File.(Program)
	if !ok || !file.CanExecute() {
		return nil, "", unix.EACCES
	}
	// A descriptor of its own: o may be another process's, about to be closed.
	own, err := file.Again()
	return own, o.Path, err
}

// Content is the host's file.
func (f *HostFile) Content() io.ReaderAt { return f.File }

// Again is Reopen.
func (f *HostFile) Again() (Program, error) {
	own, err := f.Reopen()
	if err != nil {
		return nil, err
	}
	return own, nil
}

// CanExecute reports whether anybody may: the guest is one user.
func (f *TmpFile) CanExecute() bool {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	return f.node.mode&0o111 != 0
}

// ForbidExec makes a file one that cannot be executed.
func (f *TmpFile) ForbidExec() { _ = Node{f.node}.Chmod(0o666) }

// Content is the file, whatever is written to it.
func (f *TmpFile) Content() io.ReaderAt { return tmpContent{f} }

// Again is another description's file.
func (f *TmpFile) Again() (Program, error) { return f.node.open(unix.O_RDONLY).(*TmpFile), nil }

type tmpContent struct{ f *TmpFile }

func (c tmpContent) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.f.ReadAt(p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
