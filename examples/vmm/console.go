//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/guestmm/guestmm/examples/vmm/internal/devices"
)

// errEscape says that the user has had enough.
var errEscape = errors.New("ended by Ctrl-A x")

const escape = 'a' & 0x1f // Ctrl-A

// console is the terminal, or the pipe or file, whose input the guest gets.
type console struct {
	in     *os.File
	serial *devices.Serial
	former *term.State // nil: not a terminal
	isAway bool        // the escape character was read last
}

// openConsole makes a terminal raw: Ctrl-C goes to the guest too.
func openConsole(in *os.File, s *devices.Serial) (*console, error) {
	c := &console{in: in, serial: s}
	if in == nil || !term.IsTerminal(int(in.Fd())) {
		return c, nil
	}
	var err error
	if c.former, err = term.MakeRaw(int(in.Fd())); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return c, nil
}

// close gives the terminal back.
func (c *console) close() error {
	if c.former == nil {
		return nil
	}
	return term.Restore(int(c.in.Fd()), c.former)
}

const pollMilliseconds = 100

// read hands input to the guest until ctx ends or there is no more.
func (c *console) read(ctx context.Context, end context.CancelCauseFunc) {
	if c.in == nil {
		return
	}
	fds := []unix.PollFd{{Fd: int32(c.in.Fd()), Events: unix.POLLIN}}
	buf := make([]byte, 256)
	for ctx.Err() == nil {
		n, err := unix.Poll(fds, pollMilliseconds)
		if err == unix.EINTR || n == 0 && err == nil {
			continue
		}
		if err == nil {
			n, err = unix.Read(int(fds[0].Fd), buf)
		}
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil || n == 0:
			return // the guest goes on without input
		}
		in, isEnd := c.unescape(buf[:n])
		if err := c.serial.Feed(in); err != nil && !errors.Is(err, devices.ErrClosed) {
			end(err)
			return
		}
		if isEnd {
			end(errEscape)
			return
		}
	}
}

// unescape takes Ctrl-A out of a terminal's input: Ctrl-A x ends, Ctrl-A Ctrl-A is
// one.
func (c *console) unescape(b []byte) (in []byte, isEnd bool) {
	if c.former == nil {
		return b, false
	}
	var out bytes.Buffer
	for _, x := range b {
		switch {
		case c.isAway && (x == 'x' || x == 'X'):
			return out.Bytes(), true
		case !c.isAway && x == escape:
			c.isAway = true
			continue
		}
		c.isAway = false
		out.WriteByte(x)
	}
	return out.Bytes(), false
}
