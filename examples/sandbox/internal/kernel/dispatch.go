//go:build linux && amd64

package kernel

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// args are a call's six arguments.
type args [6]uint64

// handler performs a call. Its error is an errno, or one of the results in block.go.
type handler func(t *Task, a args) (uint64, error)

// call is a row of the table: what its arguments are is for -trace alone, one
// letter each: d descriptor, s string, i number, x hexadecimal, o octal.
type call struct {
	name string
	args string
	do   handler
}

// syscall performs the call that the registers hold.
func (t *Task) syscall() {
	regs := &t.cpu.Regs
	nr := regs.RAX
	a := args{regs.RDI, regs.RSI, regs.RDX, regs.R10, regs.R8, regs.R9}
	t.k.stats.syscalls.Add(1)
	c := lookupCall(nr)
	if t.k.Profile != nil {
		began := time.Now()
		defer func() { t.profileCall(nr, time.Since(began)) }()
	}
	if t.k.Trace == nil {
		t.finish(nr, c, a)
		return
	}
	line := t.traceBegin(nr, c, a)
	ret, err := t.finish(nr, c, a)
	line.end(ret, err)
}

func lookupCall(nr uint64) *call {
	if nr < uint64(len(calls)) && calls[nr].do != nil {
		return &calls[nr]
	}
	return nil
}

// finish does the call and settles RAX.
func (t *Task) finish(nr uint64, c *call, a args) (ret uint64, err error) {
	if c == nil {
		t.k.stats.unknownCall(nr)
		err = unix.ENOSYS
	} else {
		ret, err = c.do(t, a)
	}
	t.restart.over = false
	switch {
	case err == errNoReturn:
	case err == errInterrupted:
		t.restart.kind, t.restart.nr = restartSys, nr
	case err == errInterruptedNoHandler:
		t.restart.kind, t.restart.nr = restartNoHandler, nr
	case err == errInterruptedAlways:
		t.restart.kind, t.restart.nr = restartAlways, nr
	case err != nil:
		t.cpu.Regs.RAX = errnoResult(err)
	default:
		t.cpu.Regs.RAX = ret
	}
	return ret, err
}

// errnoResult is how a failed call returns: minus the errno.
func errnoResult(err error) uint64 {
	var e unix.Errno
	if !errors.As(err, &e) {
		e = unix.EIO
	}
	return -uint64(e)
}
