package guestmem

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

const minusPage = ^uint64(0) &^ (page - 1) // a length that wraps

// memfds counts the descriptors and mappings of memfds of a name.
func memfds(t *testing.T, name string) (fds, maps int) {
	dir, err := os.ReadDir("/proc/self/fd")
	mustDo(t, err)
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, "memfd:"+name) {
			fds++
		}
	}
	b, err := os.ReadFile("/proc/self/maps")
	mustDo(t, err)
	return fds, strings.Count(string(b), "memfd:"+name)
}

// R13: NewMemory that fails leaves nothing behind, and that succeeds nothing
// after Close.
func TestR13NewMemoryFailsWhole(t *testing.T) {
	const name = "r13test"
	try := func(what string, o MemoryOptions, want ...error) {
		t.Helper()
		o.Name = name
		m, err := NewMemory(o)
		if err == nil {
			m.Close()
			t.Errorf("%s succeeded", what)
			return
		}
		for _, w := range want {
			if !errors.Is(err, w) {
				t.Errorf("%s: %v, want %v", what, err, w)
			}
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v does not say which operation failed", what, err)
		}
		if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
			t.Errorf("%s left %d descriptors and %d mappings", what, fds, maps)
		}
	}
	try("no size at an address", MemoryOptions{Base: addr.GPA(page)}, ErrInvalid, unix.EINVAL)
	try("odd size", MemoryOptions{Size: page + 1}, ErrInvalid)
	try("odd base", MemoryOptions{Size: page, Base: 1}, ErrInvalid)
	try("beyond 2^52", MemoryOptions{Size: page, Base: 1 << 52}, ErrInvalid)
	try("size wraps", MemoryOptions{Size: minusPage, Base: 2 * addr.GPA(page)}, ErrInvalid)
	try("largest size", MemoryOptions{Size: minusPage}, ErrInvalid)
	try("more than can be mapped", MemoryOptions{Size: 1 << 51}, unix.ENOMEM)
	try("more than can be mapped twice", MemoryOptions{Size: 100 << 40}, unix.ENOMEM)

	m, err := NewMemory(MemoryOptions{Size: 1 << 20, Name: name})
	mustDo(t, err)
	if fds, maps := memfds(t, name); fds != 1 || maps != 2 {
		t.Errorf("a memory has %d descriptors and %d mappings", fds, maps)
	}
	mustDo(t, m.Close())
	mustDo(t, m.Close())
	if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
		t.Errorf("a closed memory left %d descriptors and %d mappings", fds, maps)
	}
	if _, err := m.NewAddressSpace(SpaceOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a space in a closed memory: %v", err)
	}
	if _, err := m.AllocSupervisor(1); err == nil {
		t.Error("a supervisor frame of a closed memory")
	}

	// No descriptor is left. The limit is of the whole process: nothing runs
	// beside this test.
	var was unix.Rlimit
	mustDo(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	dir, err := os.ReadDir("/proc/self/fd")
	mustDo(t, err)
	mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(dir)) - 1, Max: was.Max}))
	var open []int // fill the holes below the limit
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		open = append(open, fd)
	}
	_, err = NewMemory(MemoryOptions{Size: 1 << 20, Name: name})
	for _, fd := range open {
		unix.Close(fd)
	}
	mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without a descriptor: %v", err)
	}

	// The second mapping does not fit.
	mustDo(t, unix.Getrlimit(unix.RLIMIT_AS, &was))
	mustDo(t, unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: vmSize(t) + 3<<30, Max: was.Max}))
	_, err = NewMemory(MemoryOptions{Size: 2 << 30, Name: name})
	mustDo(t, unix.Setrlimit(unix.RLIMIT_AS, &was))
	if !errors.Is(err, unix.ENOMEM) {
		t.Errorf("without address space: %v", err)
	}
	if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
		t.Errorf("NewMemory that failed left %d descriptors and %d mappings", fds, maps)
	}
}

func vmSize(t *testing.T) uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	mustDo(t, err)
	var pages uint64
	_, err = fmt.Sscan(string(b), &pages)
	mustDo(t, err)
	return pages * uint64(os.Getpagesize())
}
