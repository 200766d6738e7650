package pagetable_test

import (
	"encoding/binary"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/pagetable"
)

const fuzzFrames = 24

// fuzzIndexes are the places in tables that are written and walked to.
var fuzzIndexes = [8]uint64{0, 1, 2, 100, 254, 255, 510, 511}

// garbage is an arena whose frames, the root among them, hold what somebody
// wrote there: entries that lead outside, to themselves, to their own parents, to
// the same frame as table and as data, huge ones, and bits without a meaning.
type garbage struct {
	a    arena.Arena
	pool *cow.Pool
	t    *pagetable.Table
}

// newGarbage writes ten bytes at a time: which frame, which entry, and what.
func newGarbage(t *testing.T, b []byte, fresh bool) *garbage {
	g := &garbage{a: arena.New(make([]byte, fuzzFrames*page), firstFrame)}
	g.pool = cow.NewPool(g.a, ready{&g.a}, 0, cow.Options{GrowFrames: fuzzFrames, KeepFree: fuzzFrames})
	var used [fuzzFrames - 8]addr.PFN // the others are left for edits
	if err := g.pool.Alloc(used[:]); err != nil {
		t.Fatal(err)
	}
	for _, f := range used {
		g.a.Zero(f)
	}
	for ; len(b) >= 10; b = b[10:] {
		e := binary.LittleEndian.Uint64(b[2:])
		if b[1]&8 == 0 { // mostly one that leads to a frame, or just beside the arena
			e = e&0xfff | e&(1<<63) | (uint64(firstFrame)+uint64(b[4])%(fuzzFrames+2)-1)<<12
		}
		*g.a.Entry(used[int(b[0])%len(used)], fuzzIndexes[b[1]&7]) = e
	}
	g.t = pagetable.New(g.a, g.pool, used[0], pagetable.Options{FreshPath: fresh})
	return g
}

// translate is Translate, read off the manual: four levels, a permission holds
// if it holds on all of them, a huge page ends the walk at the third.
func (g *garbage) translate(gva addr.GVA, need pagetable.Entry) (addr.PFN, bool) {
	f := g.t.Root()
	for level := 4; level > 0; level-- {
		if !g.a.Contains(f) {
			return 0, false
		}
		e := pagetable.Entry(g.a.Load(f, index(gva, level)))
		huge := e.Has(pagetable.Huge) && level > 1
		if !e.Has(pagetable.Present|need) || huge && level > 2 {
			return 0, false
		}
		f = e.Frame()
		if huge {
			f += addr.PFN(index(gva, 1))
			break
		}
	}
	return f, g.a.Contains(f)
}

type boundedVisitor struct {
	t    *testing.T
	g    *garbage
	left int
}

func (v *boundedVisitor) VisitTable(f addr.PFN, _ int, _ pagetable.Entry) bool {
	v.left--
	return v.left > 0
}

func (v *boundedVisitor) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	if gva >= pagetable.Limit || !e.Has(pagetable.Present) {
		v.t.Fatalf("leaf %#x at %v", uint64(e), gva)
	}
}

// FuzzGarbageTables walks and edits tables of garbage: every frame that is given
// out is of the arena, and nothing panics, goes outside, or has no end (R14). What
// is in the counts afterwards is nobody's.
func FuzzGarbageTables(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, where uint32, fresh bool) {
		g := newGarbage(t, b, fresh)
		gva := addr.GVA(0)
		for level := range 4 {
			gva |= addr.GVA(fuzzIndexes[where>>(3*level)&7]) << (12 + 9*level)
		}
		for _, at := range []addr.GVA{gva, gva ^ page, gva ^ leafPT, gva ^ dirPT, gva ^ topPT, ^gva} {
			for _, need := range []pagetable.Entry{0, pagetable.User, userRW} {
				got, ok := g.t.Translate(at, need)
				want, wantOK := g.translate(at, need)
				if at >= pagetable.Limit {
					wantOK = false
				}
				if ok != wantOK || ok && got != want {
					t.Fatalf("Translate(%v, %#x) = %v, %v; want %v, %v", at, uint64(need), got, ok, want, wantOK)
				}
			}
			l := g.t.Find(at)
			if l.Entry != 0 && !l.Huge && !g.a.Contains(l.Entry.Frame()) {
				t.Fatalf("Find(%v) gives frame %v", at, l.Entry.Frame())
			}
		}
		g.t.Visit(&boundedVisitor{t, g, 50})
		if gva >= pagetable.Limit {
			return
		}
		r := addr.Range{Start: gva, End: min(gva+addr.GVA(where>>12&1023+1)*page, pagetable.Limit)}
		g.leaves(t, r)
		switch where >> 22 & 3 {
		case 0:
			g.own(gva)
		case 1:
			g.protect(r)
		case 2:
			g.zap(r)
		case 3:
			g.share()
		}
		if f, ok := g.t.Translate(gva, 0); ok && !g.a.Contains(f) {
			t.Fatalf("after an edit Translate gives %v", f)
		}
	})
}

// leaves goes through a range as a change does.
func (g *garbage) leaves(t *testing.T, r addr.Range) {
	g.t.LockTables()
	defer g.t.UnlockTables()
	for rounds := 0; !r.IsEmpty(); rounds++ {
		part, _ := g.t.NextLeaves(r)
		if part.End <= r.Start || part.End > r.End || rounds > 1024 {
			t.Fatalf("NextLeaves(%v) = %v", r, part)
		}
		r.Start = part.End
	}
}

func (g *garbage) take() addr.PFN {
	var f [1]addr.PFN
	if g.pool.Alloc(f[:]) != nil {
		return 0
	}
	return f[0]
}

// own is a fault: it makes a path the table's own, and installs.
func (g *garbage) own(gva addr.GVA) {
	var spare pagetable.Spare
	var gone pagetable.Retired
	g.t.LockTables()
	plan := g.t.PlanPath(gva, 1, true)
	for range plan.Tables {
		spare.Add(g.take())
	}
	g.t.OwnPath(gva, 1, true, &spare, &gone)
	g.t.UnlockTables()
	l := g.t.Find(gva)
	f := g.take()
	switch {
	case !l.Owned || l.Huge || f == 0:
	case l.Entry == 0:
		l.Install(pagetable.LeafEntry(f, userRW))
	case !l.Entry.Has(pagetable.Writable):
		l.Replace(pagetable.LeafEntry(f, userRW))
	default:
		l.Allow(pagetable.NoExec)
	}
}

func (g *garbage) protect(r addr.Range) {
	tok := g.t.LockChange()
	defer g.t.UnlockChange(tok)
	g.t.LockTables()
	defer g.t.UnlockTables()
	for !r.IsEmpty() {
		part, there := g.t.NextLeaves(r)
		r.Start = part.End
		if !there {
			continue
		}
		var spare pagetable.Spare
		var gone pagetable.Retired
		plan := g.t.PlanProtect(tok, part, pagetable.User)
		for range plan.Tables {
			f := g.take()
			if f == 0 {
				return
			}
			spare.Add(f)
		}
		g.t.Protect(tok, part, pagetable.User, plan, &spare, &gone, nil)
	}
}

func (g *garbage) zap(r addr.Range) {
	tok := g.t.LockChange()
	defer g.t.UnlockChange(tok)
	g.t.LockTables()
	defer g.t.UnlockTables()
	plan := g.t.PlanZap(tok, r, r)
	var spare pagetable.ZapSpare
	for range plan.Tables() {
		f := g.take()
		if f == 0 {
			return
		}
		spare.Put(f, plan)
	}
	out := pagetable.NewZapped()
	g.t.Zap(tok, r, r, plan, &spare, out)
	g.t.Rezap(tok, r, out)
}

func (g *garbage) share() {
	tok := g.t.LockChange()
	defer g.t.UnlockChange(tok)
	g.t.LockTables()
	defer g.t.UnlockTables()
	g.t.Share(tok, g.take(), g.take())
}
