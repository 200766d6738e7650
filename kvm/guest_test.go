//go:build linux && amd64

package kvm

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// newGuestMemory makes a Memory with a Platform over it; the cleanup checks
// that every frame came back.
func newGuestMemory(t testing.TB, sizeBytes uint64, o PlatformOptions) (*guestmem.Memory, *Platform) {
	t.Helper()
	s := requireKVM(t)
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: sizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlatform(s, m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Check(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if s := m.Stats(); s.FramesInUse != 0 || s.Supervisor != 0 || s.Quarantined != 0 {
			t.Errorf("frames left over: %+v", s)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, p
}

const (
	gCodeVA addr.GVA = 0x400000
	gDataVA addr.GVA = 0x10000000
)

// newGuestSpace maps programs, one a page from gCodeVA on, and data pages.
func newGuestSpace(t testing.TB, m *guestmem.Memory, nPages int, programs ...program) *guestmem.AddressSpace {
	t.Helper()
	as, err := m.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mapAt := func(va addr.GVA, nPages int, prot guestmem.Prot) {
		if _, err := as.Map(t.Context(), guestmem.MapOptions{
			Addr: va, Length: uint64(nPages) << addr.PageShift, Prot: prot,
			Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed,
		}); err != nil {
			t.Fatal(err)
		}
	}
	mapAt(gCodeVA, len(programs), guestmem.ProtRead|guestmem.ProtWrite|guestmem.ProtExec)
	mapAt(gDataVA, nPages, guestmem.ProtRead|guestmem.ProtWrite)
	for i, p := range programs {
		if _, err := as.WriteAt(t.Context(), p.bytes(), codeAt(i)); err != nil {
			t.Fatal(err)
		}
	}
	return as
}

func codeAt(i int) addr.GVA { return gCodeVA + addr.GVA(i)<<addr.PageShift }

func dataAt(i int) uint64 { return uint64(gDataVA + addr.GVA(i)<<addr.PageShift) }

// untilSyscall runs a guest and resolves its page faults until its next system
// call.
func untilSyscall(t testing.TB, p *Platform, as *guestmem.AddressSpace, c *Context) {
	t.Helper()
	for range 10000 {
		e, err := p.Run(t.Context(), as, c)
		if err != nil {
			t.Fatalf("%v (registers %+x)", err, c.Regs)
		}
		switch e.Kind {
		case ExitSyscall:
			return
		case ExitKicked:
		case ExitPageFault:
			if err := as.Fault(t.Context(), e.Addr, e.Access); err != nil {
				t.Fatalf("%v: %v", e, err)
			}
		default:
			t.Fatalf("%v (registers %+x)", e, c.Regs)
		}
	}
	t.Fatal("the guest faults for ever")
}

func TestGuestRunsInAnAddressSpace(t *testing.T) {
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{})
	const nPages = 100
	as := newGuestSpace(t, m, nPages, progFill, progSum)
	defer as.Close()
	c := p.NewContext()
	defer c.Close()
	c.Regs = Regs{RIP: uint64(codeAt(0)), RAX: 7, RDI: dataAt(0), RCX: nPages}
	untilSyscall(t, p, as, c)
	c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: dataAt(0), RCX: nPages}
	untilSyscall(t, p, as, c)
	if c.Regs.RAX != 7*nPages {
		t.Errorf("the guest sums to %d, want %d", c.Regs.RAX, 7*nPages)
	}
	if x, err := as.Load64(t.Context(), addr.GVA(dataAt(nPages-1))); x != 7 || err != nil {
		t.Errorf("Go reads %d, %v", x, err)
	}
	// What is not mapped, or not allowed, is for the caller to tell.
	c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: 0x5000, RCX: 1}
	e, err := p.Run(t.Context(), as, c)
	if err != nil || e.Kind != ExitPageFault || e.Addr != 0x5000 {
		t.Fatalf("Run = %v, %v", e, err)
	}
	if err := as.Fault(t.Context(), e.Addr, e.Access); !errors.Is(err, guestmem.ErrNotMapped) {
		t.Errorf("Fault = %v", err)
	}
}

// family is a forked family of address spaces with a model of every page.
type family struct {
	t      testing.TB
	m      *guestmem.Memory
	p      *Platform
	c      *Context
	spaces []*guestmem.AddressSpace
	pages  [][]uint64
	next   uint64
}

func (f *family) read(i, page int, by int) {
	f.t.Helper()
	var got uint64
	if by == 0 {
		f.c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(page)}
		untilSyscall(f.t, f.p, f.spaces[i], f.c)
		got = f.c.Regs.RAX
	} else {
		var err error
		if got, err = f.spaces[i].Load64(f.t.Context(), addr.GVA(dataAt(page))); err != nil {
			f.t.Fatal(err)
		}
	}
	if want := f.pages[i][page]; got != want {
		f.t.Fatalf("space %d page %d read by %d: %d, want %d", i, page, by, got, want)
	}
}

func (f *family) write(i, page int, by int) {
	f.t.Helper()
	f.next++
	if by == 0 {
		f.c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: dataAt(page), RAX: f.next}
		untilSyscall(f.t, f.p, f.spaces[i], f.c)
	} else if err := f.spaces[i].Store64(f.t.Context(), addr.GVA(dataAt(page)), f.next); err != nil {
		f.t.Fatal(err)
	}
	f.pages[i][page] = f.next
}

func (f *family) fork(i int) {
	f.t.Helper()
	child, err := f.spaces[i].Fork()
	if err != nil {
		f.t.Fatal(err)
	}
	f.spaces = append(f.spaces, child)
	f.pages = append(f.pages, append([]uint64(nil), f.pages[i]...))
}

func (f *family) close(i int) {
	f.t.Helper()
	if err := f.spaces[i].Close(); err != nil {
		f.t.Fatal(err)
	}
	last := len(f.spaces) - 1
	f.spaces[i], f.pages[i] = f.spaces[last], f.pages[last]
	f.spaces, f.pages = f.spaces[:last], f.pages[:last]
}

// TestR8ForkedFamilyReadsItsOwnPages forks, writes and closes at random, by
// guest and by Go, and has the guest read pages of every side: thousands of
// forks within fixed memory, so that every frame and every table has been
// others' before.
func TestR8ForkedFamilyReadsItsOwnPages(t *testing.T) {
	forks, nPages := 1000, 96
	if *soak {
		forks = 50000
	}
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{MaxVCPUs: 2})
	f := &family{t: t, m: m, p: p, c: p.NewContext()}
	defer f.c.Close()
	f.spaces = append(f.spaces, newGuestSpace(t, m, nPages, progRead, progWrite))
	f.pages = append(f.pages, make([]uint64, nPages))
	for page := range nPages {
		f.write(0, page, page%2)
	}
	for done := 0; done < forks; {
		i, page := rand.IntN(len(f.spaces)), rand.IntN(nPages)
		switch op := rand.IntN(10); {
		case op < 3:
			f.read(i, page, rand.IntN(2))
		case op < 6:
			f.write(i, page, rand.IntN(2))
			f.read(rand.IntN(len(f.spaces)), page, 0)
		case op < 8 && len(f.spaces) < 6:
			f.fork(i)
			done++
		case len(f.spaces) > 1:
			f.close(i)
		}
	}
	for i := range f.spaces {
		for page := range nPages {
			f.read(i, page, 0)
		}
	}
	for len(f.spaces) > 0 {
		f.close(0)
	}
	s := m.Stats()
	t.Logf("%d forks, %d pages copied, %d reused", s.Forks, s.Copied, s.Reused)
}

// TestR8SiblingsSeeEachOthersWritesAcrossForks has two vCPUs of one process
// write to pages of their own and read the other's, while the process forks
// again and again: every break of a shared page by one must reach the other.
func TestR8SiblingsSeeEachOthersWritesAcrossForks(t *testing.T) {
	rounds := 150
	if *soak {
		rounds = 15000
	}
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{MaxVCPUs: 2})
	const nPages = 8
	as := newGuestSpace(t, m, nPages, progRead, progWrite)
	defer as.Close()
	var cs [2]*Context
	for i := range cs {
		cs[i] = p.NewContext()
		defer cs[i].Close()
	}
	value := uint64(0)
	for range rounds {
		child, err := as.Fork()
		if err != nil {
			t.Fatal(err)
		}
		var old [nPages]uint64
		for page := range nPages {
			if old[page], err = as.Load64(t.Context(), addr.GVA(dataAt(page))); err != nil {
				t.Fatal(err)
			}
		}
		for page := range nPages {
			value++
			w, r := cs[page%2], cs[1-page%2]
			// The sibling has the old translation, by reading through it.
			r.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(page)}
			untilSyscall(t, p, as, r)
			w.Regs = Regs{RIP: uint64(codeAt(1)), RDI: dataAt(page), RAX: value}
			untilSyscall(t, p, as, w)
			r.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(page)}
			untilSyscall(t, p, as, r)
			if r.Regs.RAX != value {
				t.Fatalf("the sibling reads %d in page %d, want %d", r.Regs.RAX, page, value)
			}
			r.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(page)}
			untilSyscall(t, p, child, r)
			if r.Regs.RAX != old[page] {
				t.Fatalf("the child reads %d in page %d, want %d", r.Regs.RAX, page, old[page])
			}
		}
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForkUnderRunningVCPUs forks a process whose two threads never stop
// writing, and looks at what each child has: a moment of both counters that
// does not move any more, and never goes back from child to child.
func TestForkUnderRunningVCPUs(t *testing.T) {
	rounds := 100
	if *soak {
		rounds = 10000
	}
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{MaxVCPUs: 2})
	as := newGuestSpace(t, m, 4, progSpinStore)
	defer as.Close()
	var wg sync.WaitGroup
	var cs [2]*Context
	for i := range cs {
		c := p.NewContext()
		cs[i] = c
		c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: dataAt(i)}
		wg.Go(func() {
			for {
				e, err := p.Run(t.Context(), as, c)
				if err != nil {
					t.Error(err)
					return
				}
				if e.Kind == ExitKicked {
					return
				}
				if err := as.Fault(t.Context(), e.Addr, e.Access); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer func() {
		for _, c := range cs {
			c.Kick()
		}
		wg.Wait()
		for _, c := range cs {
			c.Close()
		}
	}()
	var last [2]uint64
	for range rounds {
		child, err := as.Fork()
		if err != nil {
			t.Fatal(err)
		}
		for i := range last {
			at := addr.GVA(dataAt(i))
			x, err := child.Load64(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the parent goes on", func() bool { y, _ := as.Load64(t.Context(), at); return y > x })
			if y, _ := child.Load64(t.Context(), at); y != x {
				t.Fatalf("the child's counter %d moves: %d, then %d", i, x, y)
			}
			if x < last[i] {
				t.Fatalf("counter %d goes back: %d, then %d", i, last[i], x)
			}
			last[i] = x
		}
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestR8ChangesReachARunningVCPU unmaps, protects and discards under a guest
// that has the page in its hands.
func TestR8ChangesReachARunningVCPU(t *testing.T) {
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{})
	as := newGuestSpace(t, m, 4, progRead, progWrite)
	defer as.Close()
	c := p.NewContext()
	defer c.Close()
	at := addr.GVA(dataAt(1))
	write := func(x uint64) { c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: x} }
	read := func() { c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: uint64(at)} }
	refused := func(what string, want error) {
		t.Helper()
		e, err := p.Run(t.Context(), as, c)
		if err != nil || e.Kind != ExitPageFault || e.Addr != at {
			t.Fatalf("%s: %v, %v", what, e, err)
		}
		if err := as.Fault(t.Context(), e.Addr, e.Access); !errors.Is(err, want) {
			t.Fatalf("%s: Fault = %v", what, err)
		}
	}
	for i := range uint64(20) {
		write(i + 1)
		untilSyscall(t, p, as, c)
		if err := as.Protect(at, addr.PageSize, guestmem.ProtRead); err != nil {
			t.Fatal(err)
		}
		write(1000)
		refused("write to what became read-only", guestmem.ErrAccess)
		read()
		untilSyscall(t, p, as, c)
		if c.Regs.RAX != i+1 {
			t.Fatalf("read %d, want %d", c.Regs.RAX, i+1)
		}
		if err := as.Discard(at, addr.PageSize); err != nil {
			t.Fatal(err)
		}
		read()
		untilSyscall(t, p, as, c)
		if c.Regs.RAX != 0 {
			t.Fatalf("read %d of a discarded page", c.Regs.RAX)
		}
		if err := as.Unmap(at, addr.PageSize); err != nil {
			t.Fatal(err)
		}
		read()
		refused("read of what was unmapped", guestmem.ErrNotMapped)
		if _, err := as.Map(t.Context(), guestmem.MapOptions{
			Addr: at, Length: addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite,
			Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed,
		}); err != nil {
			t.Fatal(err)
		}
	}
}
