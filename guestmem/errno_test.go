package guestmem

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The answers of Linux, call by call: result, errno, and the areas after. The
// kernel itself is asked by the corners and the oracle (corners_linux_test.go).

const errnoBase addr.GVA = 0x40000000 - 16*page // over the border of two leaf tables

// pg is the address of page n of the test's window.
func pg(n int) addr.GVA { return errnoBase + addr.GVA(n)*page }

// layout shows the areas of the window in pages: "0-3 rw-p, 5-6 r--s".
func layout(as *AddressSpace) string {
	var s []string
	for a := range as.Areas() {
		kind := "p"
		if a.Shared {
			kind = "s"
		}
		s = append(s, fmt.Sprintf("%d-%d %v%s", int64(a.Start-errnoBase)/int64(page), int64(a.End-errnoBase)/int64(page), a.Prot, kind))
	}
	return strings.Join(s, ", ")
}

// errnoOf returns the errno that an error is.
func errnoOf(err error) syscall.Errno {
	for _, e := range []syscall.Errno{
		syscall.EINVAL, syscall.ENOMEM, syscall.EFAULT, syscall.EEXIST, syscall.EOVERFLOW,
		syscall.EACCES, syscall.EPERM, syscall.ENAMETOOLONG, syscall.EBUSY, syscall.EOPNOTSUPP, syscall.EAGAIN, syscall.EFBIG,
	} {
		if errors.Is(err, e) {
			return e
		}
	}
	if err != nil {
		return 4095 // none of them
	}
	return 0
}

func mustErrno(tb testing.TB, what string, err error, want syscall.Errno) {
	tb.Helper()
	if got := errnoOf(err); got != want {
		tb.Errorf("%s: %v (errno %d %v), want %d %v", what, err, got, got, want, want)
	}
	var e *Error
	if err != nil && !errors.As(err, &e) {
		tb.Errorf("%s: %v does not say which operation failed", what, err)
	}
}

const (
	r_   = ProtRead
	rw   = ProtRead | ProtWrite
	rx   = ProtRead | ProtExec
	anon = MapPrivate | MapAnonymous
)

// errnoCase is one call on a space that begins as setup leaves it.
type errnoCase struct {
	name  string
	setup []area
	limit int // of areas; 0: the default
	call  func(as *AddressSpace) error
	errno syscall.Errno
	after string // the layout then; "=": as before
}

// area is [from, to) in pages of the window.
type area struct {
	from, to int
	prot     Prot
	flags    MapFlags // 0: private
}

func (c errnoCase) run(t *testing.T) {
	m := newMemory(t, 8<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxAreas: c.limit})
	mustDo(t, err)
	for i, a := range c.setup {
		flags := a.flags
		if flags == 0 {
			flags = MapPrivate
		}
		mustMap(t, as, MapOptions{Addr: pg(a.from), Length: uint64(a.to-a.from) * page, Prot: rw, Flags: flags | MapAnonymous | MapFixed})
		for k := a.from; k < a.to; k++ {
			mustWrite(t, as, pg(k), []byte{byte(i + 1), byte(k)})
		}
		mustDo(t, as.Protect(pg(a.from), uint64(a.to-a.from)*page, a.prot))
	}
	before, full := layout(as), as.String()
	err = c.call(as)
	mustErrno(t, c.name, err, c.errno)
	want := c.after
	if want == "=" {
		want = before
		if diff := cmp.Diff(full, as.String()); diff != "" {
			t.Errorf("areas changed:\n%s", diff)
		}
		for i, a := range c.setup {
			for k := a.from; k < a.to && a.prot != ProtNone; k++ {
				mustSee(t, as, pg(k), []byte{byte(i + 1), byte(k)})
			}
		}
	}
	if diff := cmp.Diff(want, layout(as)); diff != "" {
		t.Errorf("areas after (-want +got):\n%s", diff)
	}
	mustCheck(t, m)
}

func runErrnoCases(t *testing.T, cases []errnoCase) {
	for _, c := range cases {
		t.Run(c.name, c.run)
	}
}

func mapCall(o MapOptions) func(*AddressSpace) error {
	return func(as *AddressSpace) error { _, err := as.Map(ctx, o); return err }
}

func fixed(from, to int, prot Prot, flags MapFlags) func(*AddressSpace) error {
	return mapCall(MapOptions{Addr: pg(from), Length: uint64(to-from) * page, Prot: prot, Flags: flags | MapAnonymous | MapFixed})
}

func TestErrnoMap(t *testing.T) {
	const top = DefaultHighest
	three := []area{{0, 3, rw, 0}}
	runErrnoCases(t, []errnoCase{
		{"length 0", three, 0, mapCall(MapOptions{Prot: rw, Flags: anon}), syscall.EINVAL, "="},
		{"length 0 comes before the type", three, 0, mapCall(MapOptions{Prot: rw}), syscall.EINVAL, "="},
		{"length rounds to 0", three, 0, mapCall(MapOptions{Length: ^uint64(0), Prot: rw, Flags: anon}), syscall.ENOMEM, "="},
		{"length beyond the space", three, 0, mapCall(MapOptions{Length: 1 << 47, Prot: rw, Flags: anon}), syscall.ENOMEM, "="},
		{"length comes before the type", three, 0, mapCall(MapOptions{Length: 1 << 47}), syscall.ENOMEM, "="},
		{"offset unaligned comes before the length", three, 0, mapCall(MapOptions{Length: 1 << 47, Prot: rw, Flags: anon, Offset: 1}), syscall.EINVAL, "="},
		{"fixed beyond the space", three, 0, mapCall(MapOptions{Addr: top, Length: page, Prot: rw, Flags: anon | MapFixed}), syscall.ENOMEM, "="},
		{"fixed beyond the space, unaligned", three, 0, mapCall(MapOptions{Addr: top + 1, Length: page, Prot: rw, Flags: anon | MapFixed}), syscall.ENOMEM, "="},
		{"fixed wraps", three, 0, mapCall(MapOptions{Addr: ^addr.GVA(0) &^ (page - 1), Length: 2 * page, Prot: rw, Flags: anon | MapFixed}), syscall.ENOMEM, "="},
		{"fixed unaligned", three, 0, mapCall(MapOptions{Addr: pg(0) + 1, Length: page, Prot: rw, Flags: anon | MapFixed}), syscall.EINVAL, "="},
		{"fixed unaligned before the type", three, 0, mapCall(MapOptions{Addr: pg(0) + 1, Length: page, Flags: MapFixed}), syscall.EINVAL, "="},
		{"fixed below the lowest", three, 0, mapCall(MapOptions{Addr: 0x1000, Length: page, Prot: rw, Flags: anon | MapFixed}), syscall.EPERM, "="},
		{"noreplace on something", three, 0, fixed(2, 4, rw, MapPrivate|MapFixedNoReplace), syscall.EEXIST, "="},
		{"noreplace on something, no type", three, 0, fixed(2, 4, rw, MapFixedNoReplace), syscall.EEXIST, "="},
		{"noreplace alone fixes the address", three, 0, mapCall(MapOptions{Addr: pg(3), Length: page, Prot: r_, Flags: anon | MapFixedNoReplace}), 0, "0-3 rw-p, 3-4 r--p"},
		{"no type", three, 0, fixed(5, 6, rw, 0), syscall.EINVAL, "="},
		{"both types", three, 0, fixed(5, 6, rw, MapPrivate|MapShared), syscall.EINVAL, "="},
		{"type 5", three, 0, fixed(5, 6, rw, 5), syscall.EINVAL, "="},
		{"no type, over something", three, 0, fixed(1, 2, rw, 0), syscall.EINVAL, "="},
		{"unknown flags are ignored", three, 0, fixed(5, 6, rw, MapPrivate|0x800000|MapNoReserve|MapStack), 0, "0-3 rw-p, 5-6 rw-p"},
		{"unknown protection is ignored", three, 0, fixed(5, 6, rw|0x80, MapPrivate), 0, "0-3 rw-p, 5-6 rw-p"},
		{"anonymous offset is ignored", three, 0, mapCall(MapOptions{Addr: pg(5), Length: 2 * page, Prot: rw, Flags: anon | MapFixed, Offset: ^uint64(0) &^ (page - 1)}), 0, "0-3 rw-p, 5-7 rw-p"},
		{"fixed replaces", three, 0, fixed(1, 2, r_, MapPrivate), 0, "0-1 rw-p, 1-2 r--p, 2-3 rw-p"},
		{"fixed joins", three, 0, fixed(3, 4, rw, MapPrivate), 0, "0-4 rw-p"},
		{"shared does not join", three, 0, fixed(3, 4, rw, MapShared), 0, "0-3 rw-p, 3-4 rw-s"},
		{"up to the very top", nil, 0, func(as *AddressSpace) error {
			_, err := as.Map(ctx, MapOptions{Addr: top - page, Length: page, Prot: rw, Flags: anon | MapFixed})
			if err == nil {
				_, err = as.WriteAt(ctx, []byte("top"), top-3)
			}
			if err == nil {
				err = as.Unmap(top-page, page)
			}
			return err
		}, 0, ""},
	})
}

// An anonymous shared area ignores its offset too, and is whole.
func TestErrnoSharedAnonymousIgnoresTheOffset(t *testing.T) {
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	gva := mustMap(t, as, MapOptions{Length: 2 * page, Prot: rw, Flags: MapShared | MapAnonymous, Offset: 4 * page})
	mustWrite(t, as, gva+page, []byte("second page"))
	for a := range as.Areas() {
		if a.Offset != 0 {
			t.Errorf("offset %#x", a.Offset)
		}
	}
}

func TestErrnoMapObject(t *testing.T) {
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	o, err := m.NewFileObject(strings.NewReader("data"), 4, "file")
	mustDo(t, err)
	defer o.Close()
	other, err := NewMemory(MemoryOptions{Size: 1 << 20})
	mustDo(t, err)
	defer other.Close()
	foreign, err := other.NewFileObject(strings.NewReader("data"), 4, "foreign")
	mustDo(t, err)
	defer foreign.Close()
	const top = ^uint64(0) &^ (page - 1)
	for _, c := range []struct {
		name  string
		o     MapOptions
		errno syscall.Errno
	}{
		{"shared", MapOptions{Length: page, Prot: rw, Flags: MapShared, Object: o}, syscall.EACCES},
		{"offset overflows", MapOptions{Length: 2 * page, Prot: r_, Flags: MapPrivate, Object: o, Offset: top}, syscall.EOVERFLOW},
		{"offset beyond any file", MapOptions{Length: page, Prot: r_, Flags: MapPrivate, Object: o, Offset: 1 << 63}, syscall.EOVERFLOW},
		{"overflow comes before the type", MapOptions{Length: 2 * page, Prot: r_, Object: o, Offset: top}, syscall.EOVERFLOW},
		{"offset unaligned", MapOptions{Length: page, Prot: r_, Flags: MapPrivate, Object: o, Offset: 5}, syscall.EINVAL},
		{"no type", MapOptions{Length: page, Prot: r_, Object: o}, syscall.EINVAL},
		{"an object of another memory", MapOptions{Length: page, Prot: r_, Flags: MapPrivate, Object: foreign}, syscall.EINVAL},
	} {
		_, err := as.Map(ctx, c.o)
		mustErrno(t, c.name, err, c.errno)
	}
	if diff := cmp.Diff("", as.String()); diff != "" {
		t.Errorf("areas:\n%s", diff)
	}
	// Past the end of a file mapping succeeds; touching does not.
	gva := mustMap(t, as, MapOptions{Length: 3 * page, Prot: rw, Flags: MapPrivate, Object: o})
	mustSee(t, as, gva, append([]byte("data"), make([]byte, page-4)...))
	n, err := as.ReadAt(ctx, make([]byte, 100), gva+page-10)
	mustErrno(t, "read past the end", err, syscall.EFAULT)
	if n != 10 || !errors.Is(err, ErrBus) {
		t.Errorf("read past the end = %d, %v", n, err)
	}
	if _, err := as.WriteAt(ctx, []byte("x"), gva+page); !errors.Is(err, ErrBus) {
		t.Errorf("write past the end: %v", err)
	}
	mustCheck(t, m)
}

// The first free place is at the top of the highest hole, or at the bottom of
// the lowest; a hint wins if it is free; whole 2 MiB without a hint are aligned.
func TestErrnoPlacement(t *testing.T) {
	m := newMemory(t, 8<<20)
	const lo, hi addr.GVA = 0x10000000, 0x20000000
	space := func(p Placement) *AddressSpace {
		as, err := m.NewAddressSpace(SpaceOptions{Lowest: lo, Highest: hi, Placement: p})
		mustDo(t, err)
		return as
	}
	place := func(as *AddressSpace, hint addr.GVA, length uint64, want addr.GVA) {
		t.Helper()
		got, err := as.Map(ctx, MapOptions{Addr: hint, Length: length, Prot: rw, Flags: anon})
		if err != nil || got != want {
			t.Errorf("hint %v length %#x: %v, %v; want %v", hint, length, got, err, want)
		}
	}
	down := space(TopDown)
	place(down, 0, 1, hi-page)
	place(down, 0, 2*page, hi-3*page)
	place(down, hi-page, page, hi-4*page)     // the hint is taken
	place(down, 0x18000fff, page, 0x18000000) // rounded down, free
	place(down, 0x18000000-page, 3*page, hi-7*page)
	place(down, 5, page, hi-8*page)             // a hint in page 0 is none
	place(down, lo-page, page, lo)              // below the lowest: the lowest
	place(down, hi, page, hi-9*page)            // beyond: none
	place(down, ^addr.GVA(0), page, hi-10*page) // and so is this
	place(down, 0, 2<<20, 0x1fc00000)           // the highest hole with 2 MiB to spare: ends hi-10 pages
	place(down, 0x18000000, 2<<20, 0x1fa00000)  // with a hint, not aligned on purpose: directly below
	place(down, hi-page, 2<<20, 0x1f800000)     // likewise
	mustDo(t, down.Unmap(0x1fc00000, 2<<20))
	place(down, 0, page, hi-11*page)
	place(down, hi-page, 2<<20, hi-11*page-2<<20) // the hint is taken, and no alignment
	up := space(BottomUp)
	place(up, 0, page, lo)
	place(up, 0, page, lo+page)
	place(up, 0, 2<<20, 0x10200000)
	place(up, lo, 2<<20, 0x10400000)
	place(up, 0, page, lo+2*page)
	_, err := up.Map(ctx, MapOptions{Length: uint64(hi - lo), Prot: rw, Flags: anon})
	mustErrno(t, "no hole fits", err, syscall.ENOMEM)
	full, err := m.NewAddressSpace(SpaceOptions{Lowest: lo, Highest: lo + 4*page})
	mustDo(t, err)
	place(full, 0, 4*page, lo)
	_, err = full.Map(ctx, MapOptions{Length: 1, Prot: rw, Flags: anon})
	mustErrno(t, "full", err, syscall.ENOMEM)
}

func TestErrnoUnmap(t *testing.T) {
	unmap := func(start addr.GVA, length uint64) func(*AddressSpace) error {
		return func(as *AddressSpace) error { return as.Unmap(start, length) }
	}
	two := []area{{0, 3, rw, 0}, {5, 8, r_, 0}}
	runErrnoCases(t, []errnoCase{
		{"unaligned", two, 0, unmap(pg(0)+1, page), syscall.EINVAL, "="},
		{"length 0", two, 0, unmap(pg(0), 0), syscall.EINVAL, "="},
		{"length overflows", two, 0, unmap(pg(0), ^uint64(0)), syscall.EINVAL, "="},
		{"wraps", two, 0, unmap(pg(0), -uint64(pg(0))), syscall.EINVAL, "="},
		{"beyond the space", two, 0, unmap(DefaultHighest-page, 2*page), syscall.EINVAL, "="},
		{"not canonical", two, 0, unmap(1<<63, page), syscall.EINVAL, "="},
		{"nothing mapped", two, 0, unmap(pg(100), page), 0, "="},
		{"below the lowest", two, 0, unmap(0, page), 0, "="},
		{"from 0 to the end", two, 0, unmap(0, uint64(DefaultHighest)), 0, ""},
		{"a hole", two, 0, unmap(pg(3), 2*page), 0, "="},
		{"over a hole", two, 0, unmap(pg(2), 4*page), 0, "0-2 rw-p, 6-8 r--p"},
		{"length rounds up", two, 0, unmap(pg(0), 1), 0, "1-3 rw-p, 5-8 r--p"},
		{"middle", two, 0, unmap(pg(1), page), 0, "0-1 rw-p, 2-3 rw-p, 5-8 r--p"},
	})
}

func TestErrnoProtect(t *testing.T) {
	protect := func(start addr.GVA, length uint64, prot Prot) func(*AddressSpace) error {
		return func(as *AddressSpace) error { return as.Protect(start, length, prot) }
	}
	two := []area{{0, 3, rw, 0}, {5, 8, r_, 0}}
	runErrnoCases(t, []errnoCase{
		{"unaligned", two, 0, protect(pg(0)+1, page, r_), syscall.EINVAL, "="},
		{"unaligned, length 0", two, 0, protect(pg(0)+1, 0, r_), syscall.EINVAL, "="},
		{"length 0 before the protection", two, 0, protect(pg(0), 0, 0x80), 0, "="},
		{"length 0 on a hole", two, 0, protect(pg(3), 0, r_), 0, "="},
		{"wraps", two, 0, protect(pg(0), -uint64(pg(0)), r_), syscall.ENOMEM, "="},
		{"wraps before the protection", two, 0, protect(pg(0), ^uint64(0), 0x80), syscall.ENOMEM, "="},
		{"bad protection", two, 0, protect(pg(0), page, 0x80), syscall.EINVAL, "="},
		{"bad protection on a hole", two, 0, protect(pg(3), page, 0x80), syscall.EINVAL, "="},
		{"semaphores are allowed", two, 0, protect(pg(0), page, r_|8), 0, "0-1 r--p, 1-3 rw-p, 5-8 r--p"},
		{"starts in a hole", two, 0, protect(pg(4), 2*page, rw), syscall.ENOMEM, "="},
		{"a hole later", two, 0, protect(pg(1), 7*page, rx), syscall.ENOMEM, "0-1 rw-p, 1-3 r-xp, 5-8 r--p"},
		{"beyond the space", two, 0, protect(DefaultHighest, page, r_), syscall.ENOMEM, "="},
		{"not canonical", two, 0, protect(1<<63, page, r_), syscall.ENOMEM, "="},
		{"address 0", two, 0, protect(0, page, r_), syscall.ENOMEM, "="},
		{"splits", two, 0, protect(pg(1), page, r_), 0, "0-1 rw-p, 1-2 r--p, 2-3 rw-p, 5-8 r--p"},
		{"joins", []area{{0, 2, rw, 0}, {2, 4, r_, 0}}, 0, protect(pg(2), 2*page, rw), 0, "0-4 rw-p"},
		{"to nothing", two, 0, protect(pg(0), 3*page, ProtNone), 0, "0-3 ---p, 5-8 r--p"},
		{"write only", two, 0, protect(pg(0), 3*page, ProtWrite), 0, "0-3 -w-p, 5-8 r--p"},
	})
}

func TestErrnoDiscard(t *testing.T) {
	discard := func(start addr.GVA, length uint64) func(*AddressSpace) error {
		return func(as *AddressSpace) error { return as.Discard(start, length) }
	}
	two := []area{{0, 3, rw, 0}, {5, 8, r_, MapShared}}
	runErrnoCases(t, []errnoCase{
		{"unaligned", two, 0, discard(pg(0)+1, page), syscall.EINVAL, "="},
		{"unaligned, length 0", two, 0, discard(pg(0)+1, 0), syscall.EINVAL, "="},
		{"length 0 on a hole", two, 0, discard(pg(3), 0), 0, "="},
		{"wraps", two, 0, discard(pg(0), -uint64(pg(0))-page/2), syscall.EINVAL, "="},
		{"length overflows", two, 0, discard(pg(0), ^uint64(0)), syscall.EINVAL, "="},
		{"a hole", two, 0, discard(pg(3), page), syscall.ENOMEM, "="},
		{"shared keeps its data", two, 0, discard(pg(5), 3*page), 0, "="},
		{"not canonical", two, 0, discard(1<<63, page), syscall.ENOMEM, "="},
		{"the top", two, 0, discard(DefaultHighest, page), syscall.ENOMEM, "="},
	})
	// Over a hole all mapped parts are done.
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), page, rw)
	mapAt(t, as, pg(2), page, rw)
	mapAt(t, as, pg(3), page, ProtNone)
	mustWrite(t, as, pg(0), []byte("one"))
	mustWrite(t, as, pg(2), []byte("two"))
	mustErrno(t, "over a hole", as.Discard(pg(0), 4*page), syscall.ENOMEM)
	mustSee(t, as, pg(0), make([]byte, 3))
	mustSee(t, as, pg(2), make([]byte, 3))
}

// At the limit, whatever would make one more area, and any map, is ENOMEM with
// nothing changed; unmapping at an edge succeeds.
func TestErrnoAreaLimit(t *testing.T) {
	full := []area{{0, 3, rw, 0}, {5, 8, r_, 0}, {9, 12, rw, 0}}
	runErrnoCases(t, []errnoCase{
		{"unmap splits", full, 3, func(as *AddressSpace) error { return as.Unmap(pg(1), page) }, syscall.ENOMEM, "="},
		{"unmap at the start", full, 3, func(as *AddressSpace) error { return as.Unmap(pg(0), page) }, 0, "1-3 rw-p, 5-8 r--p, 9-12 rw-p"},
		{"unmap at the end", full, 3, func(as *AddressSpace) error { return as.Unmap(pg(2), page) }, 0, "0-2 rw-p, 5-8 r--p, 9-12 rw-p"},
		{"unmap ends inside two", full, 3, func(as *AddressSpace) error { return as.Unmap(pg(2), 4*page) }, 0, "0-2 rw-p, 6-8 r--p, 9-12 rw-p"},
		{"protect splits", full, 3, func(as *AddressSpace) error { return as.Protect(pg(1), page, r_) }, syscall.ENOMEM, "="},
		{"protect splits at an edge", full, 3, func(as *AddressSpace) error { return as.Protect(pg(0), page, r_) }, syscall.ENOMEM, "="},
		{"protect a whole area", full, 3, func(as *AddressSpace) error { return as.Protect(pg(0), 3*page, r_) }, 0, "0-3 r--p, 5-8 r--p, 9-12 rw-p"},
		{"map", full, 3, fixed(20, 21, rw, MapPrivate), syscall.ENOMEM, "="},
		{"map that would join", full, 3, fixed(3, 4, rw, MapPrivate), syscall.ENOMEM, "="},
		{"map over a whole area", full, 3, fixed(0, 3, rw, MapPrivate), syscall.ENOMEM, "="},
		{"map over, by the middle", full, 3, fixed(1, 2, rx, MapPrivate), syscall.ENOMEM, "="},
		{"map shared", full, 3, fixed(20, 21, rw, MapShared), syscall.ENOMEM, "="},
		{"map over that splits, one below the limit", full, 4, fixed(1, 2, rx, MapPrivate), syscall.ENOMEM, "="},
		{"discard", full, 3, func(as *AddressSpace) error { return as.Discard(pg(5), 3*page) }, 0, "0-3 rw-p, 5-8 r--p, 9-12 rw-p"},
		{"heap", full, 3, func(as *AddressSpace) error {
			as.SetBreak(pg(30))
			_, err := as.Brk(pg(31))
			return err
		}, syscall.ENOMEM, "="},
	})
	// The limit of a child is its parent's.
	m := newMemory(t, 8<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxAreas: 1})
	mustDo(t, err)
	mapAt(t, as, pg(0), 3*page, rw)
	child := mustFork(t, as)
	mustErrno(t, "split in a child", child.Unmap(pg(1), page), syscall.ENOMEM)
}
