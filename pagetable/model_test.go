package pagetable_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// ends are the addresses around which ranges begin and end: every alignment
// that matters to some level, and one page to both sides of it.
var ends = func() (list []addr.GVA) {
	for _, at := range []addr.GVA{0, leafPT, 2 * leafPT, 5 * leafPT, dirPT, dirPT + leafPT, 2 * dirPT, topPT, topPT + dirPT, 3 * topPT, pagetable.Limit} {
		for d := -2; d <= 2; d++ {
			if gva := at + addr.GVA(d*page); gva <= pagetable.Limit {
				list = append(list, gva)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}()

// aModelPage is what a page should be.
type aModelPage struct {
	value byte
	perm  pagetable.Entry // what it may allow at most
}

// modelSpace is a space and the pages that it should have.
type modelSpace struct {
	*space
	pages map[addr.GVA]aModelPage
}

// tablesModel is the state machine: several spaces, made by forks, whose tables
// are shared in all ways, against a map of pages for each.
type tablesModel struct {
	w      *world
	spaces []*modelSpace
}

func (m *tablesModel) pick(t *rapid.T) *modelSpace {
	return m.spaces[rapid.IntRange(0, len(m.spaces)-1).Draw(t, "space")]
}

func drawPage(t *rapid.T) addr.GVA {
	return rapid.SampledFrom(ends[:len(ends)-1]).Draw(t, "page")
}

func drawRange(t *rapid.T) addr.Range {
	i := rapid.IntRange(0, len(ends)-2).Draw(t, "start")
	j := rapid.IntRange(i+1, min(len(ends)-1, i+1+rapid.IntRange(0, len(ends)).Draw(t, "long"))).Draw(t, "end")
	return addr.Range{Start: ends[i], End: ends[j]}
}

// holeAround returns a range around r in which no page is left but in r: r
// itself, or as much as there is, to either side.
func (s *modelSpace) holeAround(t *rapid.T, r addr.Range) addr.Range {
	hole := addr.Range{Start: 0, End: pagetable.Limit}
	for gva := range s.pages {
		switch {
		case gva < r.Start:
			hole.Start = max(hole.Start, gva+page)
		case gva >= r.End:
			hole.End = min(hole.End, gva)
		}
	}
	if rapid.Bool().Draw(t, "holeStartsAtRange") {
		hole.Start = r.Start
	}
	if rapid.Bool().Draw(t, "holeEndsAtRange") {
		hole.End = r.End
	}
	return hole
}

// edit runs an edit of s and holds that, until what it dropped is dropped, no
// table of another space changes, nor, where views cache tables, a live entry
// above the leaves of any.
func (m *tablesModel) edit(t *rapid.T, s *modelSpace, fn func()) {
	var others []addr.PFN
	for _, o := range m.spaces {
		if o != s {
			others = append(others, o.t.Root())
		}
	}
	theirs := m.w.tables(1, others...)
	var own map[addr.PFN]string
	if m.w.fresh {
		own = m.w.tables(2, s.t.Root())
	}
	done := false
	m.w.afterEdit = func() {
		if done {
			return // an edit of several steps: frames dropped by the first are used again
		}
		done = true
		for f, b := range theirs {
			if string(m.w.a.Bytes(f)) != b {
				t.Errorf("table %v, which is not the space's own, was edited", f)
			}
		}
		for f, b := range own {
			for i := range uint64(256) {
				was, now := m.w.entryIn(b, i), m.w.a.Load(f, i)
				if pagetable.Entry(was).Has(pagetable.Present|pagetable.Huge) && pagetable.Entry(was).Frame() == pagetable.Entry(now).Frame() &&
					pagetable.Entry(now).Has(pagetable.Present|pagetable.Huge) {
					continue // a 2 MiB leaf may come to allow something else
				}
				if was&1 != 0 && now != was {
					t.Errorf("live entry %d of table %v was edited", i, f)
				}
			}
		}
	}
	fn()
	m.w.afterEdit = nil
}

func (m *tablesModel) write(t *rapid.T) {
	s, gva := m.pick(t), drawPage(t)
	p, there := s.pages[gva]
	if there && !p.perm.Has(userRW) {
		t.Skip("not writable")
	}
	if !there {
		p.perm = userRW
	}
	p.value = rapid.Byte().Draw(t, "value")
	m.edit(t, s, func() { s.writeAs(gva, p.value, p.perm) })
	s.pages[gva] = p
}

func (m *tablesModel) own(t *rapid.T) {
	s, gva, create := m.pick(t), drawPage(t), rapid.Bool().Draw(t, "create")
	m.edit(t, s, func() { s.space.own(gva, create) })
}

func (m *tablesModel) fork(t *rapid.T) {
	if len(m.spaces) == 4 {
		t.Skip("enough")
	}
	s := m.pick(t)
	var c *space
	m.edit(t, s, func() { c = s.space.fork() })
	m.spaces = append(m.spaces, &modelSpace{c, maps.Clone(s.pages)})
}

func (m *tablesModel) close(t *rapid.T) {
	if len(m.spaces) == 1 {
		t.Skip("the last one")
	}
	s := m.pick(t)
	s.space.close()
	m.spaces = slices.DeleteFunc(m.spaces, func(o *modelSpace) bool { return o == s })
}

func (m *tablesModel) zap(t *rapid.T) {
	s, r := m.pick(t), drawRange(t)
	hole := s.holeAround(t, r)
	var gone []addr.GVA
	for gva := range s.pages {
		if r.Contains(gva) {
			gone = append(gone, gva)
		}
	}
	var z *pagetable.Zapped
	m.edit(t, s, func() { z = s.space.zap(r, hole) })
	s.dropZapped(z)
	for _, gva := range gone {
		delete(s.pages, gva)
	}
	m.w.walk(s.t.Root(), func(n node) {
		// One that is reached through a read-only entry stays if it is empty:
		// cutting it off would take a copy of what leads to it.
		if n.level > 0 && n.level < 4 && !n.ro && hole.ContainsRange(n.span()) && r.Overlaps(n.span()) {
			t.Errorf("zap of %v in %v leaves the table of level %d over %v", r, hole, n.level, n.span())
		}
	})
}

func (m *tablesModel) protect(t *rapid.T) {
	s, r := m.pick(t), drawRange(t)
	perm := rapid.SampledFrom([]pagetable.Entry{0, pagetable.User, userRW, pagetable.User | pagetable.NoExec}).Draw(t, "perm")
	m.edit(t, s, func() { s.space.protect(r, perm) })
	for gva, p := range s.pages {
		if r.Contains(gva) {
			p.perm = p.perm&(perm|^userRW) | perm&pagetable.NoExec
			s.pages[gva] = p
		}
	}
}

// move moves a range to where there is nothing, in whole pages of any alignment.
func (m *tablesModel) move(t *rapid.T) {
	s, r := m.pick(t), drawRange(t)
	r.End = min(r.End, r.Start+4*leafPT)
	to := drawPage(t)
	if rapid.Bool().Draw(t, "wholeLeaves") {
		r.Start, r.End, to = r.Start&^(leafPT-1), (r.End+leafPT-1)&^(leafPT-1), to&^(leafPT-1)
	}
	target := addr.Range{Start: to, End: to + addr.GVA(r.Len())}
	if target.Overlaps(r) || target.End > pagetable.Limit {
		t.Skip("overlap")
	}
	for gva := range s.pages {
		if target.Contains(gva) {
			t.Skip("something is there")
		}
	}
	counts := make(map[addr.PFN]uint32)
	for gva := range s.pages {
		if r.Contains(gva) {
			f, _ := s.t.Translate(gva, 0)
			counts[f] = s.pool.Of(f)
		}
	}
	m.edit(t, s, func() { s.space.move(r, to-r.Start) })
	after := make(map[addr.GVA]aModelPage)
	for gva, p := range s.pages {
		if r.Contains(gva) {
			gva += to - r.Start
			if f, _ := s.t.Translate(gva, 0); counts[f] == 0 {
				t.Errorf("at %v is frame %v, which was not moved", gva, f)
			}
		}
		after[gva] = p
	}
	s.pages = after
}

func (m *tablesModel) check(t *rapid.T) {
	m.w.check()
	for k, s := range m.spaces {
		pages := slices.Clone(ends[:len(ends)-1])
		for gva := range s.pages {
			pages = append(pages, gva) // it may have been moved anywhere
		}
		for _, gva := range pages {
			p, want := s.pages[gva]
			v, ok := s.see(gva)
			if ok != want || v != p.value {
				t.Fatalf("space %d sees %d, %v at %v; want %d, %v", k, v, ok, gva, p.value, want)
			}
			if !ok {
				continue
			}
			e := s.t.Find(gva).Entry
			if e&userRW&^p.perm != 0 || p.perm&^e&pagetable.NoExec != 0 {
				t.Fatalf("space %d at %v allows %#x, beyond %#x", k, gva, uint64(e), uint64(p.perm))
			}
			if p.perm&^e&pagetable.User != 0 {
				t.Fatalf("space %d at %v lost the user bit: %#x", k, gva, uint64(e))
			}
			// Writable along the path means that nobody else has the frame.
			if f, ok := s.t.Translate(gva, pagetable.Writable); ok && s.pool.Of(f) != 1 {
				t.Fatalf("space %d may write frame %v at %v, which has %d references", k, f, gva, s.pool.Of(f))
			}
		}
		n := 0
		m.w.walk(s.t.Root(), func(n2 node) {
			if n2.level == 0 {
				n++
			}
		})
		if n != len(s.pages) {
			t.Fatalf("space %d has %d pages, want %d", k, n, len(s.pages))
		}
	}
}

// huge installs a 2 MiB leaf where nothing is, or gives one that is there back what
// it may do if nobody else has any of it.
func (m *tablesModel) huge(t *rapid.T) {
	s := m.pick(t)
	gva := drawPage(t) &^ (leafPT - 1)
	l := s.t.Find(gva)
	if !l.Bare && !l.Huge {
		t.Skip("a table is there")
	}
	var block addr.PFN
	if l.Bare {
		var err error
		if block, _, err = s.pool.AllocBlock(); err != nil {
			t.Skip(err.Error())
		}
		for i := range addr.PFN(pagetable.HugeFrames) {
			s.a.Zero(block + i)
		}
	}
	m.edit(t, s, func() {
		var spare pagetable.Spare
		var gone pagetable.Retired
		s.t.LockTables()
		for range s.t.PlanPath(gva, 2, true).Tables {
			spare.Add(s.alloc())
		}
		copies := s.t.WouldCopy(gva)
		s.t.OwnPath(gva, 2, true, &spare, &gone)
		if l.Bare {
			if !s.t.InstallHuge(gva, pagetable.HugeEntry(block, userRW)) || s.t.InstallHuge(gva, pagetable.HugeEntry(block, userRW)) {
				t.Error("InstallHuge of a bare entry fails, or works twice")
			}
			for k := range addr.GVA(pagetable.HugeFrames) {
				s.pages[gva+k*page] = aModelPage{perm: userRW}
			}
		} else if now := s.t.Find(gva); s.pool.ExclusiveBlock(now.Entry.Frame()) {
			if copies {
				t.Error("the leaf is this space's alone, and its table was copied")
			}
			// As far as each of the pages may be what this gives.
			perm := userRW
			for k := range addr.GVA(pagetable.HugeFrames) {
				perm &= s.pages[gva+k*page].perm
			}
			s.t.AllowHuge(gva, perm)
		}
		s.t.UnlockTables()
		for spare.Len() > 0 {
			s.free(spare.Take())
		}
		s.edited()
		s.drop(gone.All()...)
	})
}

// collapse makes a 2 MiB leaf of a table of leaves.
func (m *tablesModel) collapse(t *rapid.T) {
	s := m.pick(t)
	gva := drawPage(t) &^ (leafPT - 1)
	s.t.LockTables()
	there := s.t.LeavesAt(gva, func(pagetable.Entry, bool) {})
	s.t.UnlockTables()
	perm, some := userRW, false
	for k := range addr.GVA(pagetable.HugeFrames) {
		if p, ok := s.pages[gva+k*page]; ok {
			perm, some = perm&p.perm, true
		}
	}
	if !there || !some {
		t.Skip("nothing is there")
	}
	block, _, err := s.pool.AllocBlock()
	if err != nil {
		t.Skip(err.Error())
	}
	var own, put pagetable.Spare
	var gone [2]pagetable.Retired
	var moved []pagetable.Moved
	m.edit(t, s, func() {
		s.change(func(tok pagetable.Token) {
			for range s.t.PlanPath(gva, 1, false).Tables {
				own.Add(s.alloc())
			}
			for range s.t.PlanHuge(tok, gva).Tables {
				put.Add(s.alloc())
			}
			moved = s.t.TakeTable(tok, gva, &own, &gone[0], nil)
			for i := range addr.PFN(pagetable.HugeFrames) {
				s.a.Zero(block + i)
			}
			for _, p := range moved {
				s.a.Copy(block+addr.PFN((p.From-gva)/page), p.Entry.Frame())
			}
			s.t.PutHuge(tok, gva, pagetable.HugeEntry(block, perm), &put, &gone[1])
		})
		s.edited()
	})
	for k := range addr.GVA(pagetable.HugeFrames) {
		p := s.pages[gva+k*page]
		p.perm = perm
		s.pages[gva+k*page] = p
	}
	for _, p := range moved {
		s.drop(pagetable.Dropped{Frame: p.Entry.Frame()})
	}
	for i := range gone {
		s.drop(gone[i].All()...)
	}
	if own.Len()+put.Len() > 0 {
		t.Errorf("%d and %d table frames are left", own.Len(), put.Len())
		for own.Len() > 0 {
			s.free(own.Take())
		}
	}
}

// TestR6HugeLeavesAgainstPages is TestR6TablesAgainstPages with 2 MiB leaves.
func TestR6HugeLeavesAgainstPages(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprintf("fresh=%v", fresh), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				m := &tablesModel{w: newWorld(discard{t, rt}, 4096, fresh)}
				m.spaces = []*modelSpace{{m.w.newSpace(), make(map[addr.GVA]aModelPage)}}
				rt.Repeat(map[string]func(*rapid.T){
					"huge": m.huge, "huge2": m.huge, "collapse": m.collapse,
					"write": m.write, "own": m.own, "fork": m.fork, "close": m.close,
					"zap": m.zap, "protect": m.protect, "move": m.move, "": m.check,
				})
				for _, s := range m.spaces {
					s.space.close()
				}
				m.w.check()
			})
		})
	}
}

// TestR6TablesAgainstPages runs random histories of spaces that share tables
// against plain maps of pages. After each step every count equals the
// references found.
func TestR6TablesAgainstPages(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprintf("fresh=%v", fresh), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				m := &tablesModel{w: newWorld(discard{t, rt}, 512, fresh)}
				m.spaces = []*modelSpace{{m.w.newSpace(), make(map[addr.GVA]aModelPage)}}
				rt.Repeat(map[string]func(*rapid.T){
					"write":   m.write,
					"write2":  m.write, // more often than others
					"own":     m.own,
					"fork":    m.fork,
					"close":   m.close,
					"zap":     m.zap,
					"protect": m.protect,
					"move":    m.move,
					"":        m.check,
				})
				for _, s := range m.spaces {
					s.space.close()
				}
				m.w.check()
			})
		})
	}
}

// discard is a testing.TB for worlds of single rapid runs, which are checked
// at their end rather than in a cleanup.
type discard struct {
	testing.TB
	run *rapid.T
}

func (d discard) Cleanup(func())            {}
func (d discard) Helper()                   {}
func (d discard) Error(a ...any)            { d.run.Error(a...) }
func (d discard) Errorf(f string, a ...any) { d.run.Errorf(f, a...) }
func (d discard) Fatal(a ...any)            { d.run.Fatal(a...) }
func (d discard) Fatalf(f string, a ...any) { d.run.Fatalf(f, a...) }
func (d discard) Failed() bool              { return d.run.Failed() }
