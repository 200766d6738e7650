//go:build linux

package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrInUse: another process listens on the socket.
	ErrInUse = errors.New("another process listens there")
	// ErrNotSocket: there is a file at the path that is no socket, and is kept.
	ErrNotSocket = errors.New("there is something else than a socket")
)

// A socket listens at a path.
type socket struct {
	*net.UnixListener
	path string
	made os.FileInfo // the file as it was made
	once sync.Once
}

// listen makes a socket that only this user may connect to. One that a dead
// process has left is replaced.
//
// Errors: ErrInUse, ErrNotSocket, those of bind(2).
func listen(path string) (*socket, error) {
	if err := clear(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The file gets the mode that the socket has when it is bound, so that there
	// is no moment in which others may connect.
	var config net.ListenConfig
	config.Control = func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, modeErr)
	}
	l, err := config.Listen(background, "unix", path)
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = errors.Join(ErrInUse, err)
		}
		return nil, err
	}
	return own(l.(*net.UnixListener), path)
}

// own makes a socket of a listener that has been bound to path.
func own(l *net.UnixListener, path string) (*socket, error) {
	l.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &socket{UnixListener: l, path: path, made: made}, nil
}

// clear removes a socket on which nobody listens.
func clear(path string) error {
	if path == "" || strings.HasPrefix(path, "@") {
		return fmt.Errorf("%q is no path: %w", path, fs.ErrInvalid)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return ErrNotSocket
	}
	// A datagram socket cannot connect to a stream socket, and is told so where
	// there is one: who listens does not hear of it.
	conn, err := net.Dial("unixgram", path)
	switch {
	case err == nil:
		conn.Close()
		return ErrInUse
	case errors.Is(err, unix.EPROTOTYPE):
		return ErrInUse
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, unix.ECONNREFUSED):
		return err
	}
	return os.Remove(path)
}

// remove closes the socket and takes its file away, unless somebody else has
// made another one meanwhile.
func (s *socket) remove() {
	s.once.Do(func() {
		if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.made) {
			_ = os.Remove(s.path)
		}
		s.Close()
	})
}

// leave closes the socket; its file is somebody else's now.
func (s *socket) leave() { s.once.Do(func() { s.Close() }) }
