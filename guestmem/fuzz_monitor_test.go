package guestmem

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
)

// A family of spaces with two monitors each, driven by bytes: whatever is done to
// monitored memory, a load that succeeds finds what the model has, and every count is
// right. Faults that a monitor would be told of fail, so that nothing waits.

const (
	fuzzSmall = addr.GVA(0x400000)    // 16 pages, and
	fuzzHuge  = addr.GVA(0x4020_0000) // 4 MiB, of which pages around the borders are looked at
	fuzzEnd   = fuzzHuge + 2*addr.GVA(pagetable.HugeSpan)
)

// fuzzPages are the pages that operations begin at.
var fuzzPages = func() (at []addr.GVA) {
	for i := range addr.GVA(16) {
		at = append(at, fuzzSmall+i*page)
	}
	for _, i := range []addr.GVA{0, 1, 255, 510, 511, 512, 513, 700, 1022, 1023} {
		at = append(at, fuzzHuge+i*page)
	}
	return at
}()

type watchedSpace struct {
	as       *AddressSpace
	monitors [2]*Monitor
	holds    map[addr.GVA]byte // what pages hold; 0 where absent
}

type monitorFuzz struct {
	t      *testing.T
	m      *Memory
	spaces []*watchedSpace
	in     []byte
}

func (z *monitorFuzz) next(n int) int {
	if len(z.in) == 0 {
		return 0
	}
	b := z.in[0]
	z.in = z.in[1:]
	return int(b) % n
}

func (z *monitorFuzz) want(err error, allowed ...error) bool {
	z.t.Helper()
	if err == nil {
		return true
	}
	for _, e := range allowed {
		if errors.Is(err, e) {
			return false
		}
	}
	z.t.Fatalf("unexpected: %v", err)
	return false
}

func (s *watchedSpace) forget(r addr.Range) {
	for gva := range s.holds {
		if r.Contains(gva) {
			delete(s.holds, gva)
		}
	}
}

func (z *monitorFuzz) step() {
	s := z.spaces[z.next(len(z.spaces))]
	m := s.monitors[z.next(2)]
	op, at := z.next(20), fuzzPages[z.next(len(fuzzPages))]
	n := uint64(1)
	if k := z.next(8); k > 5 {
		n = []uint64{4, pagetable.HugeFrames}[k-6]
	}
	end := min(at+addr.GVA(n)*page, fuzzEnd)
	if at < fuzzHuge {
		end = min(end, fuzzSmall+16*page)
	}
	r := addr.Range{Start: at, End: end}
	b, fl := byte(1+z.next(200)), []uffd.Flags{0, uffd.Armed, uffd.DontWake}[z.next(3)]
	all := []error{ErrInvalid, errUnregistered, ErrExists, ErrBusy, ErrNotMapped, ErrNoSpace, ErrNoMemory, ErrAgain}
	switch op {
	case 0, 1:
		_, err := m.Register(at, r.Len(), []uffd.Mode{uffd.Missing, uffd.WP, uffd.Missing | uffd.WP}[z.next(3)])
		z.want(err, ErrInvalid, ErrBusy)
	case 2:
		z.want(m.Unregister(at, r.Len()), ErrInvalid)
	case 3, 4:
		if n == pagetable.HugeFrames {
			r.End = min(r.Start+20*page, r.End)
		}
		done, err := m.Copy(at, bytes.Repeat([]byte{b}, int(r.Len())), fl)
		z.want(err, all...)
		for gva := at; gva < at+addr.GVA(done); gva += page {
			s.holds[gva] = b
		}
	case 5:
		_, err := m.Zero(at, r.Len(), fl&uffd.DontWake)
		z.want(err, all...)
	case 6:
		_, err := m.Poison(at, r.Len(), 0)
		z.want(err, all...)
	case 7, 8:
		z.want(m.WriteProtect(at, r.Len(), fl), errUnregistered)
	case 9:
		src := fuzzPages[z.next(len(fuzzPages))]
		done, err := m.Move(at, src, page, []uffd.Flags{0, uffd.AllowHoles}[z.next(2)])
		if z.want(err, all...) && done == page && src != at {
			if s.as.pt.Find(at).Entry.Has(pagetable.Present) {
				s.holds[at] = s.holds[src]
			}
			delete(s.holds, src)
		}
	case 10:
		z.want(s.as.Discard(at, r.Len()), ErrNoSpace)
		s.forget(r)
	case 11:
		advice := []Advice{AdviceGuardInstall, AdviceGuardRemove}[z.next(2)]
		if z.want(s.as.Advise(ctx, at, r.Len(), advice), ErrNoMemory) && advice == AdviceGuardInstall {
			s.forget(r)
		}
	case 12:
		z.want(s.as.Protect(at, r.Len(), []Prot{ProtRead, rw, rw}[z.next(3)]), ErrNoSpace)
	case 13:
		_, err := s.as.Map(ctx, MapOptions{Addr: at, Length: r.Len(), Prot: rw, Flags: MapPrivate | MapAnonymous | MapFixed})
		mustDo(z.t, err)
		s.forget(r)
	case 14:
		z.want(s.as.Advise(ctx, hugeRange(at).Start, pagetable.HugeSpan, AdviceCollapse), ErrInvalid, ErrNoSpace, ErrAgain, ErrNoMemory)
	case 15:
		z.fork(s)
	case 16, 17:
		_, err := s.as.WriteAt(ctx, []byte{b}, at)
		if z.want(err, ErrBus, ErrNotMapped, ErrAccess, ErrNoMemory) {
			s.holds[at] = b
		}
	case 18:
		z.load(s, at)
	case 19:
		mustDo(z.t, m.Close())
		for i := range s.monitors {
			if s.monitors[i] == m {
				s.monitors[i] = z.monitor(s.as)
			}
		}
	}
}

func (z *monitorFuzz) load(s *watchedSpace, at addr.GVA) {
	var got [1]byte
	_, err := s.as.ReadAt(ctx, got[:], at)
	if z.want(err, ErrBus, ErrNotMapped, ErrNoMemory) && got[0] != s.holds[at] {
		z.t.Fatalf("%v holds %d, want %d", at, got[0], s.holds[at])
	}
}

func (z *monitorFuzz) monitor(as *AddressSpace) *Monitor {
	m, err := as.NewMonitor(MonitorOptions{Features: uffd.FeatureSigbus | uffd.FeaturePoison | uffd.FeatureMove |
		uffd.FeatureWPUnpopulated | uffd.FeatureEventFork})
	mustDo(z.t, err)
	return m
}

// fork makes a child, whose monitors are those of the events; every second time the
// last one ends.
func (z *monitorFuzz) fork(s *watchedSpace) {
	if len(z.spaces) == 3 {
		last := z.spaces[2]
		z.spaces = z.spaces[:2]
		z.end(last)
		return
	}
	var child *AddressSpace
	var err error
	done := testutil.Go(func() { child, err = s.as.Fork() })
	c := &watchedSpace{holds: map[addr.GVA]byte{}}
	for forked := false; !forked; {
		runtime.Gosched()
		select {
		case <-done:
			forked = true
		default:
		}
		for i, m := range s.monitors {
			var e [1]MonitorEvent
			if n, _ := m.Read(e[:]); n == 1 && e[0].Kind == uffd.EventFork {
				c.monitors[i] = e[0].Child
			}
		}
	}
	if !z.want(err, ErrNoMemory) {
		return
	}
	c.as = child
	for i := range c.monitors {
		if c.monitors[i] == nil {
			c.monitors[i] = z.monitor(child)
		}
	}
	for gva, b := range s.holds {
		c.holds[gva] = b
	}
	z.spaces = append(z.spaces, c)
}

func (z *monitorFuzz) end(s *watchedSpace) {
	for _, gva := range fuzzPages {
		z.load(s, gva)
	}
	mustDo(z.t, s.monitors[0].Close())
	mustDo(z.t, s.as.Close())
	mustDo(z.t, s.monitors[1].Close()) // in a space that is gone
}

// FuzzMonitor drives them by bytes.
func FuzzMonitor(f *testing.F) {
	for seed := range 8 { // one of each operation, in other orders
		var b []byte
		for i := range 400 {
			b = append(b, byte((i*i*31+i*(2*seed+7)+seed*101)>>2))
		}
		f.Add(b)
	}
	// Armed, forked, registered by another in the child, collapsed there.
	f.Add([]byte{0, 0, 0, 16, 7, 9, 0, 2, 0, 0, 7, 16, 7, 9, 1, 0, 0, 15, 16, 0, 0, 0, 1, 1, 0, 16, 7, 9, 0, 0, 1, 0, 5, 17, 0, 9, 0, 1, 0, 14, 16, 7, 0, 0})
	f.Fuzz(runMonitorFuzz)
}

func runMonitorFuzz(t *testing.T, b []byte) {
	m, err := NewMemory(MemoryOptions{Size: 12 << 20, KeepFree: 4 << 20})
	mustDo(t, err)
	as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: HugeLeavesAlways})
	mustDo(t, err)
	z := &monitorFuzz{t: t, m: m, in: b[:min(len(b), 2000)]}
	s := &watchedSpace{as: as, holds: map[addr.GVA]byte{}}
	mapAt(t, as, fuzzSmall, 16*page, rw)
	mapAt(t, as, fuzzHuge, uint64(fuzzEnd-fuzzHuge), rw)
	s.monitors = [2]*Monitor{z.monitor(as), z.monitor(as)}
	z.spaces = []*watchedSpace{s}
	for i := 0; len(z.in) > 0; i++ {
		z.step()
		if i%16 == 15 {
			mustCheck(t, m)
		}
	}
	mustCheck(t, m)
	for _, s := range z.spaces {
		z.end(s)
	}
	mustCheck(t, m)
	if s := m.Stats(); s.FramesInUse != 0 || s.HugeLeaves != 0 || s.MonitorWaiting != 0 {
		t.Errorf("left in use: %+v", s)
	}
	mustDo(t, m.Close())
}
