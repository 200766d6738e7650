package pagetable_test

import (
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

const (
	present = pagetable.Present
	huge    = pagetable.Huge
)

// setPath writes the entries on the way to gva by hand, from the root down; the
// tables are frames of the test's own.
func (s *space) setPath(gva addr.GVA, entries [4]pagetable.Entry) {
	f := s.t.Root()
	for k, e := range entries {
		s.a.Table(f)[index(gva, 4-k)] = uint64(e)
		f = e.Frame()
	}
}

func entryTo(f addr.PFN, bits pagetable.Entry) pagetable.Entry {
	return pagetable.Entry(f)<<addr.PageShift | bits
}

// loose returns a space and frames for tables that the test fills by hand; they
// are not counted, so the space is emptied before counts are compared.
func loose(t *testing.T) (*space, [4]addr.PFN) { return looseIn(t, 64) }

func looseIn(t *testing.T, nFrames uint64) (*space, [4]addr.PFN) {
	w := newWorld(t, nFrames, false)
	s := w.newSpace()
	var f [4]addr.PFN
	for i := range f {
		f[i] = w.alloc()
		w.a.Zero(f[i])
		w.held[f[i]] = 1
	}
	for range 30 { // something for leaves to lead to
		w.held[w.alloc()] = 1
	}
	t.Cleanup(func() { w.a.Zero(s.t.Root()) })
	return s, f
}

// Every combination of permissions at every level: what holds is the AND of
// writable and user along the path, and a leaf is owned if every entry above it
// is writable. No-execute, which Go code need not ask about, changes neither.
func TestTranslateWantsPermissionsAlongThePath(t *testing.T) {
	s, f := loose(t)
	const gva addr.GVA = 5*topPT + 3*dirPT + 7*leafPT + 9*page + 123
	bitsOf := func(c int) (e pagetable.Entry) {
		for k, bit := range []pagetable.Entry{pagetable.Writable, pagetable.User, pagetable.NoExec} {
			if c>>k&1 != 0 {
				e |= bit
			}
		}
		return e
	}
	for c := range 1 << 12 {
		var entries [4]pagetable.Entry
		and, owned := ^pagetable.Entry(0), true
		for k := range entries {
			bits := bitsOf(c >> (3 * k) & 7)
			entries[k] = entryTo(f[k], bits|present)
			and &= bits
			owned = owned && (k == 3 || bits.Has(pagetable.Writable))
		}
		s.setPath(gva, entries)
		for _, need := range []pagetable.Entry{0, pagetable.User, pagetable.Writable, userRW} {
			got, ok := s.t.Translate(gva, need)
			if want := and.Has(need); ok != want || ok && got != f[3] {
				t.Fatalf("path %#x, need %#x: %v, %v; want %v", entries, uint64(need), got, ok, want)
			}
		}
		if l := s.t.Find(gva); l.Entry != entries[3] || l.Owned != owned || l.Huge || l.Reload() != entries[3] {
			t.Fatalf("path %#x: Find = %+v, want owned %v", entries, l, owned)
		}
	}
	// An entry missing at any level.
	for k := range 4 {
		var entries [4]pagetable.Entry
		for j := range entries {
			entries[j] = entryTo(f[j], userRW|present)
		}
		entries[k] &^= present
		s.setPath(gva, entries)
		if got, ok := s.t.Translate(gva, 0); ok {
			t.Errorf("nothing present at level %d: Translate = %v", 4-k, got)
		}
		if l := s.t.Find(gva); l.Entry != 0 || l.Owned != (k == 3) {
			t.Errorf("nothing present at level %d: Find = %+v", 4-k, l)
		}
	}
}

func TestTranslateHugeLeaves(t *testing.T) {
	s, f := looseIn(t, 2048)
	const gva addr.GVA = 2*topPT + 1*dirPT + 4*leafPT + 9*page
	first, _, err := s.pool.AllocBlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.pool.DropBlock(first) })
	last := s.a.First() + addr.PFN(s.a.Len())
	table := func(f addr.PFN) pagetable.Entry { return entryTo(f, userRW|present) }
	for _, c := range []struct {
		name    string
		entries [4]pagetable.Entry
		need    pagetable.Entry
		want    addr.PFN // 0: absent
		huge    bool
		owned   bool
	}{
		{"2 MiB", [4]pagetable.Entry{table(f[0]), table(f[1]), entryTo(first, present|userRW|huge)}, userRW, first + 9, true, true},
		{"read-only", [4]pagetable.Entry{table(f[0]), table(f[1]), entryTo(first, present|pagetable.User|huge)}, pagetable.Writable, 0, true, true},
		{"read-only above", [4]pagetable.Entry{table(f[0]), entryTo(f[1], present|pagetable.User), entryTo(first, present|userRW|huge)}, pagetable.Writable, 0, true, false},
		{"absent", [4]pagetable.Entry{table(f[0]), table(f[1]), entryTo(first, userRW|huge)}, 0, 0, false, false},
		{"not aligned, which nobody installs", [4]pagetable.Entry{table(f[0]), table(f[1]), entryTo(first+1, present|userRW|huge)}, pagetable.NoExec, 0, false, false},
		{"reaches past the end", [4]pagetable.Entry{table(f[0]), table(f[1]), entryTo(last-5, present|userRW|huge)}, 0, 0, false, false},
		{"1 GiB, which nobody installs", [4]pagetable.Entry{table(f[0]), entryTo(f[1], present|userRW|huge), table(f[2]), table(f[3])}, 0, 0, false, false},
		{"reserved bit in the root", [4]pagetable.Entry{entryTo(f[0], present|userRW|huge), table(f[1]), table(f[2]), table(f[3])}, 0, 0, false, false},
	} {
		s.setPath(gva, c.entries)
		got, ok := s.t.Translate(gva, c.need)
		if ok != (c.want != 0) || ok && got != c.want {
			t.Errorf("%s: Translate = %v, %v; want %v", c.name, got, ok, c.want)
		}
		if l := s.t.Find(gva); l.Huge != c.huge || l.Owned != c.owned || c.huge && l.FrameAt(gva) != first+9 {
			t.Errorf("%s: Find = %+v", c.name, l)
		}
	}
}

func TestNothingIsMappedFromLimitOn(t *testing.T) {
	s, f := loose(t)
	for i := range 512 { // the supervisor half leads somewhere too
		s.a.Table(s.t.Root())[i] = uint64(entryTo(f[0], userRW|present))
	}
	for k, to := range f[1:] {
		for i := range 512 {
			s.a.Table(f[k])[i] = uint64(entryTo(to, userRW|present))
		}
	}
	if _, ok := s.t.Translate(pagetable.Limit-1, userRW); !ok {
		t.Error("the last page is not there")
	}
	for _, gva := range []addr.GVA{pagetable.Limit, pagetable.Limit + page, 1 << 48, 0xffff_8000_0000_0000, ^addr.GVA(0)} {
		if got, ok := s.t.Translate(gva, 0); ok {
			t.Errorf("Translate(%v) = %v", gva, got)
		}
		if l := s.t.Find(gva); l != (pagetable.Leaf{}) {
			t.Errorf("Find(%v) = %+v", gva, l)
		}
	}
}

// An entry that somebody wrote a frame number into that is outside of the
// memory counts as absent everywhere: nothing panics, nothing is read or written
// through it, no count is asked for, and a fault mends it.
func TestR14EntriesThatLeadOutside(t *testing.T) {
	outside := []addr.PFN{0, firstFrame - 1, firstFrame + 4096, 1<<40 - 1}
	both(t, 4096, func(w *world) {
		const gva addr.GVA = 3*dirPT + 5*leafPT + 6*page
		for level := 4; level >= 1; level-- {
			for _, f := range outside {
				for _, bits := range []pagetable.Entry{present | userRW, present | pagetable.User, present | userRW | pagetable.Shared, present | huge | userRW} {
					if bits.Has(huge) && (level == 1 || f+511 >= firstFrame && f < firstFrame) {
						continue // another attribute there; and a leaf that reaches into the memory
					}
					s := w.newSpace()
					s.write(gva, 1)
					s.write(gva+page, 2)
					table := s.pathOf(gva)[level]
					was := w.a.Table(table)[index(gva, level)]
					w.a.Table(table)[index(gva, level)] = uint64(entryTo(f, bits))
					s.abuse(gva)
					// What the entry had led to is lost to the table, so give it up.
					s.drop(pagetable.Dropped{Frame: pagetable.Entry(was).Frame(), Level: level - 1})
					s.close()
					w.check()
					if w.Failed() {
						w.Fatalf("a level %d entry led to frame %v with %#x", level, f, uint64(bits))
					}
				}
			}
		}
	})
}

// abuse calls everything on the way to gva, where some entry leads outside.
func (s *space) abuse(gva addr.GVA) {
	s.Helper()
	r := addr.Range{Start: gva, End: gva + page}
	if f, ok := s.t.Translate(gva, 0); ok && !s.a.Contains(f) {
		s.Errorf("Translate = %v", f)
	}
	if l := s.t.Find(gva); l.Entry.Has(present) && !l.Huge || l.Huge && l.Owned {
		s.Errorf("Find = %+v", l)
	}
	s.t.Visit(ignore{})
	for _, e := range []pagetable.Entry{pagetable.User, 0} {
		if stale := s.protect(r, e); len(stale) != 0 {
			s.Errorf("Protect of nothing touched %v", stale)
		}
	}
	c := s.fork()
	s.own(gva, false) // as if to zap a shared part of it
	c.own(gva, false)
	z := c.zap(addr.Range{Start: gva &^ (leafPT - 1), End: gva&^(leafPT-1) + leafPT}, addr.Range{End: pagetable.Limit})
	for _, d := range z.Tables {
		pagetable.EachFrame(&s.a, d, func(f addr.PFN) {
			if !s.a.Contains(f) {
				s.Errorf("EachFrame tells of %v", f)
			}
		})
	}
	c.dropZapped(z)
	c.close()
	s.dropZapped(s.zap(r, r))
	if l := s.t.Find(gva); !l.Huge { // a fault mends it
		s.write(gva, 3)
		if v, ok := s.see(gva); !ok || v != 3 {
			s.Errorf("after the next write: %d, %v", v, ok)
		}
		s.dropZapped(s.zap(r, r))
	}
}

type ignore struct{}

func (ignore) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }
func (ignore) VisitLeaf(addr.GVA, pagetable.Entry)            {}

// Junk without the present bit in a leaf is no page, and no obstacle either.
func TestR14InstallOverJunk(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	s.write(page, 1)
	s.a.Table(s.pathOf(0)[1])[5] = uint64(entryTo(firstFrame+3, userRW))
	s.write(5*page, 7)
	if v, ok := s.see(5 * page); !ok || v != 7 {
		t.Errorf("see = %d, %v", v, ok)
	}
}

// Visit and the tests' own walk tell of the same references.
func TestVisitTellsOfEveryReference(t *testing.T) {
	w := newWorld(t, 256, false)
	s := w.newSpace()
	pages := []addr.GVA{0, page, leafPT, dirPT + 3*page, topPT, pagetable.Limit - page}
	for i, gva := range pages {
		s.write(gva, byte(i))
	}
	s.fork() // read-only roots, met twice over
	var want, got recorder
	w.walk(s.t.Root(), func(n node) {
		if n.level == 0 {
			want.VisitLeaf(n.at, n.entry)
		} else {
			want.VisitTable(n.frame, n.level, n.entry)
		}
	})
	s.t.Visit(&got)
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("Visit tells of\n%v\nwant\n%v", g, w)
	}
	var flat recorder
	flat.stop = true
	s.t.Visit(&flat)
	if len(flat.met) != 1 {
		t.Errorf("Visit went on below a table that it was told not to: %v", flat.met)
	}
}

type recorder struct {
	met  []string
	stop bool
}

func (r *recorder) VisitTable(f addr.PFN, level int, e pagetable.Entry) bool {
	r.met = append(r.met, fmt.Sprintf("table %v level %d by %#x\n", f, level, uint64(e)))
	return !r.stop
}

func (r *recorder) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	r.met = append(r.met, fmt.Sprintf("leaf %v %#x\n", gva, uint64(e)))
}
