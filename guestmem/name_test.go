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

// namesIn lists the areas of a space as pages from base on and their names.
func namesIn(as *AddressSpace, base addr.GVA) (out []string) {
	for a := range as.Areas() {
		out = append(out, fmt.Sprintf("%d-%d %s", (a.Start-base)/page, (a.End-base)/page, a.Name))
	}
	return out
}

// Areas split and merge by name, and names go where areas go.
func TestAreaNamesMergeAndSplit(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	const base = 0x10000000
	mapAt(t, as, base, 8*page, rw)
	expect := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, namesIn(as, base)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	mustDo(t, as.SetName(base+2*page, 3*page-7, "heap of x"))
	expect("named", "0-2 ", "2-5 [anon:heap of x]", "5-8 ")
	mustDo(t, as.SetName(base+5*page, page, "heap of x"))
	expect("grown", "0-2 ", "2-6 [anon:heap of x]", "6-8 ")
	mustDo(t, as.SetName(base+3*page, page, "y"))
	expect("split", "0-2 ", "2-3 [anon:heap of x]", "3-4 [anon:y]", "4-6 [anon:heap of x]", "6-8 ")
	child := mustFork(t, as)
	if diff := cmp.Diff(namesIn(as, base), namesIn(child, base)); diff != "" {
		t.Errorf("the child has others:\n%s", diff)
	}
	mustDo(t, as.ClearName(base, 8*page))
	expect("cleared", "0-8 ")
	if got := namesIn(child, base); len(got) != 5 {
		t.Errorf("cleared in the child too: %v", got)
	}
	mustDo(t, as.SetName(base, page, ""))
	expect("empty name", "0-1 [anon:]", "1-8 ")
	shared := mustMap(t, as, MapOptions{Addr: base + 8*page, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, as.SetName(shared, page, "s"))
	to, err := as.Remap(ctx, RemapOptions{Addr: base, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: base + 20*page})
	mustDo(t, err)
	mustDo(t, as.SetName(to, page, "moved"))
	expect("moved", "1-8 ", "8-9 [anon_shmem:s]", "20-21 [anon:moved]")
	if !strings.Contains(as.String(), "[anon:moved]\n") {
		t.Errorf("String:\n%s", as)
	}
}

func TestAreaNamesRefused(t *testing.T) {
	m := newMemory(t, 16<<20)
	o := newWritable(t, m, newSlowFile(1))
	as, err := m.NewAddressSpace(SpaceOptions{MaxAreas: 4})
	mustDo(t, err)
	const base = 0x10000000
	mapAt(t, as, base, 4*page, rw)
	mustMap(t, as, MapOptions{Addr: base + 4*page, Length: page, Prot: rw, Flags: MapShared | MapFixed, Object: o})
	for _, tt := range []struct {
		at   addr.GVA
		n    uint64
		name string
		want error
	}{
		{base, page, strings.Repeat("x", MaxNameLength+1), ErrInvalid},
		{base, page, "a\x1f", ErrInvalid},
		{base, page, "a\x7f", ErrInvalid},
		{base, page, "a[0]", ErrInvalid},
		{base, page, "$x", ErrInvalid},
		{base, page, "`", ErrInvalid},
		{base, page, `\`, ErrInvalid},
		{base + 1, page, "x", ErrInvalid},
		{base, ^uint64(0), "x", ErrInvalid},
		{base, 0, "x", nil},
		{base + 4*page, page, "x", ErrNoBacking},
		{base - page, 2 * page, "first", ErrNoSpace},
		{base + 3*page, 2 * page, "last", syscall.EBADF},
		{base + 2*page, page, "too many", ErrAgain},
		{base, page, strings.Repeat("x", MaxNameLength), nil},
	} {
		if err := as.SetName(tt.at, tt.n, tt.name); !errors.Is(err, tt.want) {
			t.Errorf("SetName(%v, %#x, %.20q) = %v, want %v", tt.at, tt.n, tt.name, err, tt.want)
		}
	}
	want := []string{"0-1 [anon:" + strings.Repeat("x", MaxNameLength) + "]", "1-3 ", "3-4 [anon:last]", "4-5 file"}
	if diff := cmp.Diff(want, namesIn(as, base)); diff != "" {
		t.Errorf("what was done of it (-want +got):\n%s", diff)
	}
}

// A guest that gives one name after the other does not use the numbers up; names that
// areas have, in any space, stay theirs.
func TestR14AreaNamesDoNotRunOut(t *testing.T) {
	m := newMemory(t, 16<<20)
	as, other := newSpace(t, m), newSpace(t, m)
	const base = 0x10000000
	mapAt(t, as, base, page, rw)
	mapAt(t, other, base, page, rw)
	mustDo(t, other.SetName(base, page, "kept"))
	for i := range int(maxNames) + 1000 {
		mustDo(t, as.SetName(base, page, fmt.Sprint(i)))
	}
	for as, want := range map[*AddressSpace]string{as: fmt.Sprintf("0-1 [anon:%d]", int(maxNames)+999), other: "0-1 [anon:kept]"} {
		if got := namesIn(as, base); len(got) != 1 || got[0] != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
}
