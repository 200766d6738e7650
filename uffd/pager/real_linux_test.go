package pager

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// A realGuest is memory of this process behind a userfaultfd. It is reached by
// process_vm_readv and process_vm_writev only, which fault in the kernel: a
// plain load would hang this process at the next collection (R10).
type realGuest struct {
	fd    *uffd.FD
	start addr.HVA
	size  uint64
	// more is unmapped with the rest: once nobody is told of it any more,
	// since whoever unmaps waits for that.
	more []addrRange
}

// room is an address for memory to be moved to.
func (g *realGuest) room(t testing.TB, size uint64) addr.HVA {
	t.Helper()
	to, err := mapRaw(0, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	if err != nil {
		t.Fatal(err)
	}
	g.more = append(g.more, addrRange{to, to + addr.HVA(size)})
	return to
}

// events are what a pager wants to be told of.
const events = uffd.FeatureEventRemove | uffd.FeatureEventUnmap | uffd.FeatureEventRemap | uffd.FeatureEventFork

type realOptions struct {
	features uffd.Features
	mode     uffd.Mode
	file     *os.File // mapped MAP_PRIVATE; nil: anonymous
	flags    int      // more flags for mmap
}

func newReal(t testing.TB, size uint64, o realOptions) *realGuest {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	g, err := mapReal(size, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.fd.Close()
		unmapRaw(g.start, g.size)
		for _, m := range g.more {
			unmapRaw(m.start, uint64(m.end-m.start))
		}
	})
	return g
}

func mapReal(size uint64, o realOptions) (*realGuest, error) {
	if o.mode == 0 {
		o.mode = uffd.Missing
	}
	fd, err := uffd.Open(uffd.Options{Required: o.features})
	if err != nil {
		return nil, err
	}
	file, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS
	if o.flags&unix.MAP_HUGETLB == 0 {
		flags |= unix.MAP_NORESERVE
	}
	if o.file != nil {
		file, flags = int(o.file.Fd()), unix.MAP_PRIVATE
	}
	start, err := mapRaw(0, size, unix.PROT_READ|unix.PROT_WRITE, flags|o.flags, file)
	if err != nil {
		fd.Close()
		return nil, err
	}
	if o.flags&unix.MAP_HUGETLB == 0 {
		_ = adviseRaw(start, size, unix.MADV_NOHUGEPAGE)
	}
	if _, err := fd.Register(start, size, o.mode); err != nil {
		fd.Close()
		unmapRaw(start, size)
		return nil, fmt.Errorf("register: %w", err)
	}
	return &realGuest{fd: fd, start: start, size: size}, nil
}

func (g *realGuest) page(i int) addr.HVA { return g.start + addr.HVA(i)*smallPage }

// load reads memory of this process inside a system call.
func load(a addr.HVA, p []byte) error {
	n, err := unix.ProcessVMReadv(os.Getpid(), iovec(p), []unix.RemoteIovec{{Base: uintptr(a), Len: len(p)}}, 0)
	if err == nil && n != len(p) {
		err = fmt.Errorf("%d of %d bytes", n, len(p))
	}
	return err
}

// store writes it.
func store(a addr.HVA, p []byte) error {
	n, err := unix.ProcessVMWritev(os.Getpid(), iovec(p), []unix.RemoteIovec{{Base: uintptr(a), Len: len(p)}}, 0)
	if err == nil && n != len(p) {
		err = fmt.Errorf("%d of %d bytes", n, len(p))
	}
	return err
}

func iovec(p []byte) []unix.Iovec {
	v := unix.Iovec{Base: &p[0]}
	v.SetLen(len(p))
	return []unix.Iovec{v}
}

// loadPage loads a page and wants it to be want, within the tests' deadline.
func loadPage(t testing.TB, a addr.HVA, want []byte) {
	t.Helper()
	got := make([]byte, smallPage)
	err := testutil.Proceeds(t, goLoad(a, got), fmt.Sprintf("load of %v", a))
	if err != nil {
		t.Fatalf("load of %v: %v", a, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("load of %v: %x..., want %x...", a, head(got), head(want))
	}
}

func goLoad(a addr.HVA, p []byte) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- load(a, p) }()
	return ch
}

func serveReal(t testing.TB, s *Server, r *realGuest, o GuestOptions) *Guest {
	t.Helper()
	o.FD = r.fd
	if o.Regions == nil {
		o.Regions = []Region{{Start: r.start, Size: r.size}}
	}
	if o.Fail == nil {
		o.Fail = func(error) {}
	}
	g, err := s.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}
