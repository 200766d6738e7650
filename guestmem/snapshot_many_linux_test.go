package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// manyRegions makes a memory of n regions of 4 pages that do not touch, each with its
// number in its second page.
func manyRegions(t *testing.T, n int) (*Memory, []*Region) {
	t.Helper()
	m := newPhys(t)
	regions := make([]*Region, n)
	for i := range regions {
		backing := BackingMemfd
		if i%5 == 4 {
			backing = BackingAnonymous
		}
		regions[i] = mustAdd(t, m, RegionOptions{Base: addr.GPA(i) * 8 * page, Size: 4 * page, Backing: backing, HugePages: HugeNever})
		mustDo(t, m.Store64(regions[i].base+page, uint64(i)+1))
	}
	return m, regions
}

// A memory of five hundred regions: snapshots of it hold all of them, two differ by what
// was written, and a clone has them.
func TestSnapshotOfManyRegions(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	const n = 500
	m, regions := manyRegions(t, n)
	holds := func(of func(addr.GPA) (uint64, error), i int, want uint64, what string) {
		t.Helper()
		if got, err := of(regions[i].base + page); err != nil || got != want {
			t.Errorf("%s: region %d holds %d, %v, want %d", what, i, got, err, want)
		}
	}
	first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	for i := 0; i < n; i += 7 {
		mustDo(t, slotStore(regions[i], page, []byte{1, 2, 3}))
	}
	for i := 3; i < n; i += 7 {
		mustDo(t, m.Store64(regions[i].base+page, 0))
	}
	second := mustSnapshotOf(t, m, SnapshotOptions{})
	if len(first.Regions()) != n || len(second.Regions()) != n {
		t.Errorf("%d and %d regions", len(first.Regions()), len(second.Regions()))
	}
	if st, want := second.Stats(), uint64((n+6)/7+(n+3)/7); st.Written != want || st.PagesArmed != want {
		t.Errorf("%d pages were written and %d armed, want %d", st.Written, st.PagesArmed, want)
	}
	mustSweep(t, second)
	clone := mustCloneOf(t, first, CloneOptions{})
	read := func(of interface {
		ReadAt([]byte, addr.GPA) (int, error)
	}) func(addr.GPA) (uint64, error) {
		return func(at addr.GPA) (v uint64, err error) {
			var b [8]byte
			_, err = of.ReadAt(b[:], at)
			for i, x := range b {
				v |= uint64(x) << (8 * i)
			}
			return v, err
		}
	}
	for i := range regions {
		was, is := uint64(i)+1, uint64(i)+1
		switch i % 7 {
		case 0:
			is = is&^0xffffff | 0x030201
		case 3:
			is = 0
		}
		changed := ""
		if is != was {
			changed = "1"
		}
		holds(read(first), i, was, "the first")
		holds(read(second), i, is, "the second")
		holds(read(clone), i, was, "a clone")
		holds(m.Load64, i, is, "the guest")
		mustHaveChanged(t, second, first, regions[i].base, changed)
	}
}

// A host that has descriptors for some of the regions only refuses, by name, and the
// guest has what it had.
func TestSnapshotOfManyRegionsWithoutDescriptors(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, regions := manyRegions(t, 200)
	var limit unix.Rlimit
	mustDo(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	for _, more := range []uint64{20, 150} {
		top, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		mustDo(t, err)
		mustDo(t, unix.Close(top))
		low.Cur = uint64(top) + more
		mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
		_, err = m.Snapshot(context.Background(), SnapshotOptions{})
		mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("with %d descriptors: %v", more, err)
		}
	}
	for _, r := range regions {
		if r.anyArmed(0, 4) {
			t.Fatalf("region %v is armed, and there is no snapshot", r)
		}
	}
	s := mustSnapshotOf(t, m, SnapshotOptions{})
	mustDo(t, slotStore(regions[199], page, []byte{9}))
	mustSweep(t, s)
	b := make([]byte, 1)
	if _, err := s.ReadAt(b, regions[199].base+page); err != nil || b[0] != 200 {
		t.Errorf("the last region holds %d, %v", b[0], err)
	}
}

// Thirty snapshots of one memory are open at once, some of them swept, and closed in
// any order: each holds its instant, each two differ by the writes between them, and a
// store copies its page once for each that lacks it.
func TestManySnapshotsAtOnce(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	const nPages, n = 64, 30
	rng := rand.New(rand.NewPCG(30, 1))
	m, r, now := patterned(t, nPages)
	var taken []*Snapshot
	var want [][]byte
	var wrote []map[int]bool // before each
	for i := range n {
		pages := map[int]bool{}
		for range rng.IntN(6) {
			p := rng.IntN(nPages)
			pages[p] = true
			b := []byte{byte(i), byte(p), 1}
			if rng.IntN(2) == 0 {
				mustDo(t, slotStore(r, uint64(p)*page, b))
			} else {
				mustWritePhys(t, m, r.base+addr.GPA(p)*page, b)
			}
			copy(now[p*page:], b)
		}
		wrote = append(wrote, pages)
		want = append(want, bytes.Clone(now))
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		taken = append(taken, s)
		if rng.IntN(4) == 0 {
			mustSweep(t, taken[rng.IntN(len(taken))])
		}
	}
	// Here all of them that were not swept lack the page.
	mustDo(t, slotStore(r, 5*page, []byte("last")))
	copy(now[5*page:], "last")
	for i, s := range taken {
		mustShow(t, s, r.base, want[i], fmt.Sprint("snapshot ", i))
	}
	for range 100 {
		a, b := rng.IntN(n), rng.IntN(n)
		if a >= b {
			continue
		}
		text := ""
		for p := range nPages {
			for _, w := range wrote[a+1 : b+1] {
				if w[p] {
					text += fmt.Sprint(" ", p)
					break
				}
			}
		}
		mustHaveChanged(t, taken[b], taken[a], r.base, text[min(1, len(text)):])
	}
	for _, i := range rng.Perm(n) {
		mustShow(t, taken[i], r.base, want[i], fmt.Sprint("snapshot ", i, ", beside fewer"))
		mustDo(t, taken[i].Close())
		mustDo(t, m.Store8(r.base+addr.GPA(rng.IntN(nPages)*page+100), byte(i)))
	}
	if r.anyArmed(0, nPages) || r.watched.Load() != 0 {
		t.Error("pages are armed, and no snapshot is open")
	}
}
