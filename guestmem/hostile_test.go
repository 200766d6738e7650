package guestmem

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

// R14: whatever number a guest passes, the answer is an error or a result, and
// never a panic, another's memory, or a wait without end.

var hostileAddresses = []addr.GVA{
	0, 1, 7, 8, page - 1, page, 0xffff, 0x10000,
	pagetable.Limit - 2*page, DefaultHighest - 8, DefaultHighest, pagetable.Limit - 8, pagetable.Limit - 1, pagetable.Limit, pagetable.Limit + page,
	1 << 48, 1<<63 - page, 1 << 63, 0xffff_8000_0000_0000, 0xffff_8000_0000_0008,
	1<<47 | pg(0), 1<<48 | pg(0), 1<<63 | pg(0), 0xffff_0000_0000_0000 | pg(0), // alias what is mapped to a walker that masks
	^addr.GVA(0) - page, ^addr.GVA(0) &^ (page - 1), ^addr.GVA(0) - 7, ^addr.GVA(0) - 3, ^addr.GVA(0),
}

var hostileLengths = []uint64{
	0, 1, 7, page - 1, page, page + 1, 2 << 20, 1 << 39, 1<<47 - page, 1 << 47, 1<<47 + 1, 1 << 48, 1 << 52, 1<<63 - 1, 1 << 63, 1<<63 + page,
	^uint64(0) - page, ^uint64(0) &^ (page - 1), ^uint64(0) - page + 2, ^uint64(0) - 1, ^uint64(0),
}

func TestR14HostileAddressesAndLengths(t *testing.T) {
	m := newMemory(t, 2<<20)
	h := m.NewHandle()
	defer h.Close()
	buf := make([]byte, 3*page)
	for _, mapped := range []bool{false, true} {
		as := newSpace(t, m)
		if mapped { // at both ends, and in the middle
			mapAt(t, as, DefaultLowest, 4*page, rw)
			mapAt(t, as, DefaultHighest-4*page, 4*page, rw)
			mapAt(t, as, pg(0), 4*page, rw)
			mustWrite(t, as, pg(0), buf)
		}
		a := as.With(h)
		for _, gva := range append(hostileAddresses, pg(0), pg(3)+page-3) {
			check := func(what string, n, limit int, err error) {
				t.Helper()
				if n < 0 || n > limit || n < limit && err == nil {
					t.Errorf("%s at %v = %d of %d, %v", what, gva, n, limit, err)
				}
				if err != nil && !errors.Is(err, ErrNotMapped) && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLong) {
					t.Errorf("%s at %v: %v", what, gva, err)
				}
				if gva >= pagetable.Limit && err == nil && limit > 0 {
					t.Errorf("%s at %v succeeded", what, gva)
				}
			}
			for _, size := range []int{1, 8, 9, len(buf)} {
				n, err := as.ReadAt(ctx, buf[:size], gva)
				check("read", n, size, err)
				n, err = a.WriteAt(ctx, buf[:size], gva)
				check("write", n, size, err)
			}
			one := func(what string, err error) {
				n := 1
				if err != nil {
					n = 0
				}
				check(what, n, 1, err)
			}
			_, err := a.Load32(ctx, gva)
			one("load32", err)
			_, err = as.Load64(ctx, gva)
			one("load64", err)
			one("store32", as.Store32(ctx, gva, 0))
			one("store64", a.Store64(ctx, gva, 0))
			_, err = as.CompareAndSwap32(ctx, gva, 0, 0)
			one("cas32", err)
			_, err = a.CompareAndSwap64(ctx, gva, 0, 0)
			one("cas64", err)
			for _, access := range []Access{Read, Write} {
				one("fault", as.Fault(ctx, gva, access))
			}
			for _, access := range []Access{0, Execute, 3, 0xff} {
				if err := a.Fault(ctx, gva, access); err == nil {
					t.Errorf("fault %d at %v succeeded", access, gva)
				}
			}
			for _, max := range []int{math.MinInt, -1, 0, 1, 300, 1 << 20} {
				if s, err := as.ReadCString(ctx, gva, max); err == nil && s != "" {
					t.Errorf("string at %v: %q", gva, s)
				}
			}
			_, _ = as.FindArea(gva)
			for _, length := range hostileLengths {
				end := gva + addr.GVA(length) // wraps on purpose
				if pin, err := as.Pin(ctx, addr.Range{Start: gva, End: end}, Write); err == nil {
					pin.Release()
				}
				if err := as.Populate(ctx, addr.Range{Start: gva, End: end}, Write); err == nil && gva < end && length > 1<<40 {
					t.Errorf("populated %#x bytes at %v", length, gva)
				}
			}
		}
		mustCheck(t, m)
		mustDo(t, as.Close())
	}
}

// Layout calls with every combination; the space must stay consistent, and be
// emptied by one unmap.
func TestR14HostileLayouts(t *testing.T) {
	m := newMemory(t, 2<<20)
	for _, o := range []SpaceOptions{{}, {Placement: BottomUp}, {Lowest: 0, Highest: pagetable.Limit}, {Lowest: page, Highest: 3 * page}} {
		as, err := m.NewAddressSpace(o)
		mustDo(t, err)
		for _, gva := range hostileAddresses {
			for _, length := range hostileLengths {
				for _, flags := range []MapFlags{anon, anon | MapFixed, anon | MapFixedNoReplace, MapShared | MapFixed, ^MapFlags(0), ^MapFixed &^ 1, 0} {
					_, _ = as.Map(ctx, MapOptions{Addr: gva, Length: length, Prot: 0xff, Flags: flags &^ MapPopulate, Offset: uint64(gva)})
				}
				_ = as.Protect(gva, length, Prot(length))
				_ = as.Protect(gva, length, rw)
				_ = as.Discard(gva, length)
				_, _ = as.WriteAt(ctx, []byte("x"), gva)
				_ = as.Unmap(gva, length)
			}
			if o.Lowest == 0 && o.Highest == 0 {
				_, _ = as.Brk(gva)
				as.SetBreak(gva)
				_, _ = as.Brk(gva + page)
			}
		}
		mustCheck(t, m)
		bounds := as.Bounds()
		mustDo(t, as.Unmap(bounds.Start, bounds.Len()))
		if s := as.String(); s != "" {
			t.Errorf("left after unmapping all:\n%s", s)
		}
		mustDo(t, as.Close())
	}
	for _, o := range []SpaceOptions{
		{Highest: 1}, {Lowest: page}, {Lowest: 2 * page, Highest: page}, {Lowest: 1, Highest: page}, {Highest: pagetable.Limit + page},
		{Lowest: 1 << 63, Highest: ^addr.GVA(0) &^ (page - 1)}, {MaxAreas: -1},
	} {
		if _, err := m.NewAddressSpace(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A guest that forks and touches without end gets ErrNoMemory, and gives all
// back.
func TestR14ForkingWithoutEnd(t *testing.T) {
	m := newMemory(t, 1<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), 64*page, rw)
	mustWrite(t, as, pg(0), []byte("x"))
	children := []*AddressSpace{as}
	for i := 0; ; i++ {
		child, err := children[i/2].Fork()
		if err != nil {
			mustErrno(t, "fork", err, 12)
			break
		}
		children = append(children, child)
		if _, err := child.WriteAt(ctx, []byte{1}, pg(i%64)); err != nil && !errors.Is(err, ErrNoMemory) {
			t.Fatal(err)
		}
	}
	if len(children) < 20 {
		t.Errorf("only %d children", len(children))
	}
	_, err := as.Map(ctx, MapOptions{Length: 1 << 40, Prot: rw, Flags: anon | MapPopulate})
	mustDo(t, err) // what cannot be had ahead is left to the fault
	mustCheck(t, m)
	for _, c := range children[1:] {
		mustDo(t, c.Close())
	}
	mustSee(t, as, pg(0), []byte{'x'})
	mustWrite(t, as, pg(63), []byte("there is room again"))
}

// Entries that lead anywhere: a copy answers with an error or with bytes of the
// arena, never by a panic and never by waiting.
func TestR14CorruptTables(t *testing.T) {
	if invariants.Enabled {
		t.Skip("invariants panic on purpose where a table leads to a free frame")
	}
	const size = 1 << 20
	m, err := NewMemory(MemoryOptions{Size: size, Base: 1 << 30})
	mustDo(t, err)
	defer m.Close()
	as := newSpace(t, m)
	defer as.Close()
	gva := mapAt(t, as, 0x40000000, 2<<20, rw)
	for i := range addr.GVA(512) {
		if i%8 == 0 {
			mustWrite(t, as, gva+i*page, []byte{byte(i)})
		}
	}
	var tables []addr.PFN // root first, leaf table last
	f := as.Root()
	for level := 4; level > 0; level-- {
		tables = append(tables, f)
		f = pagetable.Entry(m.arena.Load(f, uint64(gva>>(12+9*(level-1)))&511)).Frame()
	}
	rng := rand.New(rand.NewPCG(14, 14))
	garbage := func() uint64 {
		switch rng.IntN(4) {
		case 0:
			return rng.Uint64()
		case 1:
			return rng.Uint64() | 7
		case 2: // into the memory, any bits
			return (1<<30+rng.Uint64N(size))&^(page-1) | rng.Uint64N(page) | rng.Uint64()&(1<<63)
		}
		return (1<<30+rng.Uint64N(2*size))&^(page-1) | 7
	}
	h := m.NewHandle()
	defer h.Close()
	a := as.With(h)
	for depth, table := range tables {
		saved := *m.arena.Table(table)
		for range 200 {
			for i := range saved {
				if depth > 0 || i < 256 {
					m.arena.Table(table)[i] = garbage()
				}
			}
			for range 200 {
				at := gva + addr.GVA(rng.Uint64N(2<<20))
				if rng.IntN(3) == 0 {
					at = addr.GVA(rng.Uint64())
				}
				buf := make([]byte, 1+rng.IntN(2*int(page)))
				n, _, _ := a.copySection(buf, at, Read)
				if n < 0 || n > len(buf) {
					t.Fatalf("copied %d of %d", n, len(buf))
				}
				a.h.Enter(as.id)
				if f, ok := as.pt.Translate(at, needFor(Write)); ok && !m.arena.Contains(f) {
					t.Errorf("translated to frame %v outside of the memory", f)
				}
				as.pt.Find(at).Reload()
				a.h.Exit()
			}
			*m.arena.Table(table) = saved
		}
	}
	// A leaf that leads out of the memory is no reason to try for ever.
	e := m.arena.Entry(tables[3], 1)
	for _, access := range []func() error{
		func() error { _, err := as.ReadAt(ctx, make([]byte, 8), gva+page); return err },
		func() error { _, err := as.WriteAt(ctx, make([]byte, 8), gva+page); return err },
		func() error { return as.Store64(ctx, gva+page, 1) },
		func() error { return as.Fault(ctx, gva+page, Write) },
	} {
		for _, perm := range []pagetable.Entry{0, pagetable.User, pagetable.User | pagetable.Writable} {
			bad := uint64(pagetable.LeafEntry(1, perm))
			*e = bad
			mustEnd(t, "an access by a leaf that leads out of the memory", inBackground(func() {
				if err := access(); err != nil && !errors.Is(err, ErrBus) {
					t.Error(err)
				}
			}))
			if *e == bad {
				*e = 0
			}
			mustDo(t, as.Discard(gva+page, page))
		}
	}
	mustSee(t, as, gva+8*page, []byte{8})
	mustCheck(t, m)
}
