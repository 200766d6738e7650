package guestmem

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func TestErrnoBrk(t *testing.T) {
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	brk := func(to, want addr.GVA, errno syscall.Errno, areas string) {
		t.Helper()
		got, err := as.Brk(to)
		mustErrno(t, "brk", err, errno)
		if got != want {
			t.Errorf("brk(%v) = %v, want %v", to, got, want)
		}
		if diff := cmp.Diff(areas, layout(as)); diff != "" {
			t.Errorf("after brk(%v):\n%s", to, diff)
		}
	}
	brk(pg(1), 0, 0, "") // no break yet
	as.SetBreak(pg(0) - 1)
	brk(0, pg(0), 0, "")
	brk(pg(0)-1, pg(0), 0, "")
	brk(pg(0), pg(0), 0, "")
	brk(pg(1)+5, pg(1)+5, 0, "0-2 rw-p")
	mustWrite(t, as, pg(1), []byte("heap"))
	brk(pg(2), pg(2), 0, "0-2 rw-p")
	brk(pg(4), pg(4), 0, "0-4 rw-p")
	mapAt(t, as, pg(6), page, rw)
	brk(pg(7), pg(4), syscall.ENOMEM, "0-4 rw-p, 6-7 rw-p")
	brk(pg(6), pg(4), syscall.ENOMEM, "0-4 rw-p, 6-7 rw-p") // a page stays free above
	brk(pg(5), pg(5), 0, "0-5 rw-p, 6-7 rw-p")
	brk(^addr.GVA(0), pg(5), syscall.ENOMEM, "0-5 rw-p, 6-7 rw-p")
	brk(1<<47, pg(5), syscall.ENOMEM, "0-5 rw-p, 6-7 rw-p")
	brk(pg(1)+5, pg(1)+5, 0, "0-2 rw-p, 6-7 rw-p")
	mustSee(t, as, pg(1), []byte("heap"))
	brk(pg(1), pg(1), 0, "0-1 rw-p, 6-7 rw-p")
	brk(pg(3), pg(3), 0, "0-3 rw-p, 6-7 rw-p")
	mustSee(t, as, pg(1), make([]byte, 4)) // what was given back comes again empty
	mustDo(t, as.Unmap(pg(1), page))       // a hole in the heap
	child := mustFork(t, as)
	brk(pg(0), pg(0), 0, "6-7 rw-p")
	brk(pg(2), pg(2), 0, "0-2 rw-p, 6-7 rw-p")
	mustDo(t, as.Unmap(pg(0), 2*page))
	brk(pg(1), pg(2), syscall.ENOMEM, "6-7 rw-p") // nothing is there to give back
	if got, err := child.Brk(pg(5)); err != nil || got != pg(5) {
		t.Errorf("the child's break = %v, %v", got, err)
	}
	if got := layout(child); got != "0-1 rw-p, 2-5 rw-p, 6-7 rw-p" {
		t.Errorf("the child's areas: %s", got)
	}
}

// Reads of what is mapped with any permission succeed; the rest is EFAULT, and
// a copy that fails midway has done its head, to the byte.
func TestErrnoAccess(t *testing.T) {
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	prots := []Prot{ProtNone, r_, ProtWrite, rw, ProtExec, rx, ProtWrite | ProtExec, rw | ProtExec}
	for i, p := range prots {
		at := pg(3 * i)
		mapAt(t, as, at, page, rw)
		mapAt(t, as, at+page, page, rw)
		if i%2 == 0 { // half of them touched before
			mustWrite(t, as, at+page, []byte{1})
		}
		mustDo(t, as.Protect(at+page, page, p))
		for _, n := range []int{0, 1, 7, 8, int(page)} {
			buf := make([]byte, n+20)
			want, errno := n, syscall.EFAULT
			if p != ProtNone {
				want, errno = n+20, 0
			}
			got, err := as.ReadAt(ctx, buf, at+page-addr.GVA(n))
			mustErrno(t, fmt.Sprintf("read of %v", p), err, errno)
			if got != want {
				t.Errorf("read of %v over its start = %d, want %d", p, got, want)
			}
			want, errno = n, syscall.EFAULT
			if p&ProtWrite != 0 {
				want, errno = n+20, 0
			}
			got, err = as.WriteAt(ctx, buf, at+page-addr.GVA(n))
			mustErrno(t, fmt.Sprintf("write of %v", p), err, errno)
			if got != want {
				t.Errorf("write of %v over its start = %d, want %d", p, got, want)
			}
			if errno != 0 && !errors.Is(err, ErrAccess) {
				t.Errorf("write of %v: %v, want ErrAccess", p, err)
			}
		}
		err := as.Fault(ctx, at+page, Execute)
		if (err == nil) != (p&ProtExec != 0) {
			t.Errorf("execute of %v: %v", p, err)
		}
		// Over the end into a hole.
		n, err := as.ReadAt(ctx, make([]byte, 9), at+2*page-3)
		want := 3
		if p == ProtNone {
			want = 0
		}
		mustErrno(t, "read into a hole", err, syscall.EFAULT)
		if n != want || want == 3 && !errors.Is(err, ErrNotMapped) {
			t.Errorf("read into a hole behind %v = %d, %v", p, n, err)
		}
	}
	mustErrno(t, "no kind of access", as.Fault(ctx, pg(1), 0), syscall.EFAULT)
	mustErrno(t, "every kind of access", as.Fault(ctx, pg(1), 7), syscall.EFAULT)
	if n, err := as.ReadAt(ctx, nil, pg(1000)); n != 0 || err != nil {
		t.Errorf("read of nothing in a hole = %d, %v", n, err)
	}
}

// After Close everything is ErrClosed, and nothing panics.
func TestErrnoClosed(t *testing.T) {
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), 4*page, rw)
	mustWrite(t, as, pg(0), []byte("x"))
	mustErrno(t, "close memory", m.Close(), syscall.EBUSY)
	mustDo(t, as.Close())
	mustDo(t, as.Close())
	h := m.NewHandle()
	defer h.Close()
	for name, call := range map[string]func() error{
		"map":     func() error { _, err := as.Map(ctx, MapOptions{Length: page, Flags: anon}); return err },
		"unmap":   func() error { return as.Unmap(pg(0), page) },
		"protect": func() error { return as.Protect(pg(0), page, r_) },
		"discard": func() error { return as.Discard(pg(0), page) },
		"brk":     func() error { _, err := as.Brk(pg(1)); return err },
		"fork":    func() error { _, err := as.Fork(); return err },
		"read":    func() error { _, err := as.ReadAt(ctx, make([]byte, 4), pg(0)); return err },
		"write":   func() error { _, err := as.WriteAt(ctx, make([]byte, 4), pg(0)); return err },
		"load":    func() error { _, err := as.With(h).Load64(ctx, pg(0)); return err },
		"fault":   func() error { return as.Fault(ctx, pg(1), Write) },
		"pin":     func() error { _, err := as.Pin(ctx, addr.Range{Start: pg(0), End: pg(1)}, Write); return err },
		"string":  func() error { _, err := as.ReadCString(ctx, pg(0), 10); return err },
	} {
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s after Close panics: %v", name, p)
				}
			}()
			if err := call(); !errors.Is(err, ErrClosed) {
				t.Errorf("%s after Close: %v", name, err)
			}
		}()
	}
	as.SetBreak(pg(0))
}
