package pagetable_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
)

func TestMain(m *testing.M) { testutil.Main(m) }

const (
	page   = addr.PageSize
	leafPT = 2 << 20 // what a leaf table spans
	dirPT  = 1 << 30 // what a table of leaf tables spans
	topPT  = 1 << 39 // what a root entry spans

	userRW = pagetable.User | pagetable.Writable
	// firstFrame is not 0, so that frame numbers and indexes do not mix.
	firstFrame addr.PFN = 0x100
)

// ready is host memory that is always there, as zeroes.
type ready struct{ a *arena.Arena }

func (s ready) Populate(f addr.PFN, n uint64) error {
	for i := range addr.PFN(n) {
		s.a.Zero(f + i)
	}
	return nil
}
func (ready) GiveBack(addr.PFN, uint64) error { return nil }

// world is frames in the Go heap, where the race detector sees them, and the
// tables that are made of them. It compares every count with the references
// that it finds whenever asked, and when the test ends.
type world struct {
	testing.TB
	a      arena.Arena
	pool   *cow.Pool
	fresh  bool
	spaces []*space
	held   map[addr.PFN]uint32 // references that the test itself holds
	// afterEdit, if not nil, is called after every edit of tables, before what
	// it made unreachable is dropped.
	afterEdit func()
}

// both runs a test with and without a second translator.
func both(t *testing.T, nFrames uint64, test func(w *world)) {
	for _, fresh := range []bool{false, true} {
		t.Run(fmt.Sprintf("fresh=%v", fresh), func(t *testing.T) { test(newWorld(t, nFrames, fresh)) })
	}
}

func newWorld(tb testing.TB, nFrames uint64, fresh bool) *world {
	w := &world{TB: tb, fresh: fresh, held: make(map[addr.PFN]uint32)}
	w.a = arena.New(make([]byte, nFrames*page), firstFrame)
	w.pool = cow.NewPool(w.a, ready{&w.a}, 1, cow.Options{GrowFrames: 64, KeepFree: nFrames})
	tb.Cleanup(func() {
		if tb.Failed() {
			return
		}
		w.check()
		for len(w.spaces) > 0 {
			w.spaces[0].close()
		}
		w.check()
	})
	return w
}

func (w *world) edited() {
	if w.afterEdit != nil {
		w.afterEdit()
	}
}

func (w *world) alloc() addr.PFN {
	w.Helper()
	var f [1]addr.PFN
	if err := w.pool.Alloc(f[:]); err != nil {
		w.Fatal(err)
	}
	return f[0]
}

// free gives up a reference of the test's own.
func (w *world) free(f addr.PFN) {
	pagetable.Drop(&w.a, w.pool, pagetable.Dropped{Frame: f, Moved: true})
}

func (w *world) entry(f addr.PFN, i uint64) pagetable.Entry { return pagetable.Entry(w.a.Load(f, i)) }

// node is an entry that a walk has met, or, with level 4 and no entry, a root.
type node struct {
	frame addr.PFN // what the entry leads to
	level int      // of the table that frame is; 0: data
	at    addr.GVA
	entry pagetable.Entry
	ro    bool // some entry on the way was read-only
}

func (n node) span() addr.Range {
	return addr.Range{Start: n.at, End: n.at + 1<<(12+9*n.level)}
}

// walk tells of the root and everything below it.
func (w *world) walk(root addr.PFN, fn func(node)) {
	var below func(n node)
	below = func(n node) {
		fn(n)
		if n.level == 0 {
			return
		}
		entries := uint64(arena.EntriesPerTable)
		if n.level == 4 {
			entries /= 2
		}
		for i := range entries {
			e := w.entry(n.frame, i)
			if e.Has(pagetable.Present|pagetable.Huge) && n.level == 2 {
				for k := range addr.PFN(pagetable.HugeFrames) {
					fn(node{frame: e.Frame() + k, entry: e, at: n.at + addr.GVA(i<<21) + addr.GVA(k)*page, ro: n.ro || !e.Has(pagetable.Writable)})
				}
				continue
			}
			if e.Has(pagetable.Present) {
				below(node{
					frame: e.Frame(), level: n.level - 1, entry: e,
					at: n.at + addr.GVA(i<<(12+9*(n.level-1))),
					ro: n.ro || !e.Has(pagetable.Writable),
				})
			}
		}
	}
	below(node{frame: root, level: 4})
}

// tables returns the bytes of every table below the roots, by frame, down to
// the lowest level asked for.
func (w *world) tables(lowest int, roots ...addr.PFN) map[addr.PFN]string {
	m := make(map[addr.PFN]string)
	for _, root := range roots {
		w.walk(root, func(n node) {
			if n.level >= lowest {
				m[n.frame] = string(w.a.Bytes(n.frame))
			}
		})
	}
	return m
}

// check compares all counts with the references found: each table's content is
// counted once, however many lead to it.
func (w *world) check() {
	w.Helper()
	refs := maps.Clone(w.held)
	met := make(map[addr.PFN]bool)
	blocks := make(map[addr.PFN]uint32)
	for _, s := range w.spaces {
		var visit func(f addr.PFN, level int)
		visit = func(f addr.PFN, level int) {
			refs[f]++
			if level == 0 || met[f] {
				return
			}
			met[f] = true
			entries := uint64(arena.EntriesPerTable)
			if level == 4 {
				entries /= 2
			}
			for i := range entries {
				if e := w.entry(f, i); e.Has(pagetable.Present | pagetable.Huge) {
					if blocks[e.Frame()]++; blocks[e.Frame()] == 1 {
						for k := range addr.PFN(pagetable.HugeFrames) {
							refs[e.Frame()+k]++
						}
					}
				} else if e.Has(pagetable.Present) {
					visit(e.Frame(), level-1)
				}
			}
		}
		visit(s.t.Root(), 4)
	}
	for i := range w.a.Len() {
		f := w.a.First() + addr.PFN(i)
		if n := w.pool.Of(f); n != refs[f] {
			w.Fatalf("frame %v: count %d, but %d references", f, n, refs[f])
		}
	}
	w.pool.EachBlock(func(f addr.PFN, leaves uint32) {
		if leaves != blocks[f] {
			w.Fatalf("block %v: %d leaves counted, %d found", f, leaves, blocks[f])
		}
	})
	free, unused := w.pool.FreeFrames()
	if used := w.a.Len() - 1 - free - unused; used != uint64(len(refs)) {
		w.Fatalf("%d frames are not free, but %d are referred to", used, len(refs))
	}
}

// space is one table and what a caller has to do around it.
type space struct {
	*world
	t *pagetable.Table
}

func (w *world) newSpace() *space {
	root := w.alloc()
	w.a.Zero(root)
	return w.adopt(root)
}

func (w *world) adopt(root addr.PFN) *space {
	s := &space{w, pagetable.New(w.a, w.pool, root, pagetable.Options{FreshPath: w.fresh})}
	w.spaces = append(w.spaces, s)
	return s
}

func (s *space) drop(gone ...pagetable.Dropped) {
	for _, d := range gone {
		pagetable.Drop(&s.a, s.pool, d)
	}
}

// own makes the path to gva the space's own, with no frame more in stock than
// was planned, and reports how many of them it used.
func (s *space) own(gva addr.GVA, create bool) (plan pagetable.PathPlan, used int) {
	s.Helper()
	var spare pagetable.Spare
	var gone pagetable.Retired
	s.t.LockTables()
	plan = s.t.PlanPath(gva, 1, create)
	for range plan.Tables {
		spare.Add(s.alloc())
	}
	s.t.OwnPath(gva, 1, create, &spare, &gone)
	s.t.UnlockTables()
	used = plan.Tables - spare.Len()
	for spare.Len() > 0 {
		s.free(spare.Take())
	}
	s.edited()
	s.drop(gone.All()...)
	return plan, used
}

// leaf owns the path to gva and returns the leaf.
func (s *space) leaf(gva addr.GVA) pagetable.Leaf {
	s.Helper()
	l := s.t.Find(gva)
	if !l.Owned {
		s.own(gva, true)
		l = s.t.Find(gva)
	}
	if !l.Owned {
		s.Fatalf("the path to %v is not owned after OwnPath", gva)
	}
	return l
}

// write is what a fault does for a write of v to a private page that allows it.
func (s *space) write(gva addr.GVA, v byte) { s.Helper(); s.writeAs(gva, v, userRW) }

func (s *space) writeAs(gva addr.GVA, v byte, perm pagetable.Entry) {
	s.Helper()
	s.own(gva, true) // splits what is there
	l := s.leaf(gva)
	switch e := l.Entry; {
	case !e.Has(pagetable.Present):
		f := s.alloc()
		s.a.Zero(f)
		if !l.Install(pagetable.LeafEntry(f, perm)) {
			s.Fatal("Install lost, and nobody else is there")
		}
	case e.Has(pagetable.Writable):
	case s.pool.MayWrite(cow.Write{AreaMayWrite: true, OwnPath: l.Owned, SharedArea: e.Has(pagetable.Shared), Frame: e.Frame()}):
		if !l.Allow(userRW) {
			s.Fatal("Allow lost, and nobody else is there")
		}
	default:
		f := s.alloc()
		s.a.Copy(f, e.Frame())
		if !l.Replace(pagetable.LeafEntry(f, perm)) {
			s.Fatal("Replace lost, and nobody else is there")
		}
		s.drop(pagetable.Dropped{Frame: e.Frame()})
	}
	f, ok := s.t.Translate(gva, userRW)
	if !ok {
		s.Fatalf("%v does not translate for writing after a write fault", gva)
	}
	s.a.Bytes(f)[0] = v
	s.edited()
}

// see returns the first byte of a page, and whether there is one.
func (s *space) see(gva addr.GVA) (byte, bool) {
	f, ok := s.t.Translate(gva, 0)
	if !ok {
		return 0, false
	}
	return s.a.Bytes(f)[0], true
}

// change runs fn as a change.
func (s *space) change(fn func(tok pagetable.Token)) {
	tok := s.t.LockChange()
	defer s.t.UnlockChange(tok)
	s.t.LockTables()
	defer s.t.UnlockTables()
	fn(tok)
}

// zap takes away r and returns what it took out, not yet dropped.
func (s *space) zap(r, hole addr.Range) *pagetable.Zapped {
	s.Helper()
	out := pagetable.NewZapped()
	s.change(func(tok pagetable.Token) {
		p := s.t.PlanZap(tok, r, hole)
		var spare pagetable.ZapSpare
		for range p.Tables() {
			spare.Put(s.alloc(), p)
		}
		root := s.t.Root()
		s.t.Zap(tok, r, hole, p, &spare, out)
		s.t.Rezap(tok, r, out)
		if s.t.Root() != root && !p.Replaces() {
			s.Error("Zap made a new root, and had not said that it replaces")
		}
		for f, ok := spare.Take(); ok; f, ok = spare.Take() {
			s.free(f)
		}
	})
	s.edited()
	return out
}

func (s *space) dropZapped(z *pagetable.Zapped) {
	for _, e := range z.Leaves {
		level := 1
		if e.Has(pagetable.Huge) {
			level = 2
		}
		s.drop(pagetable.DroppedBy(e, level))
	}
	s.drop(z.Tables...)
}

// protect takes from r what perm does not allow, and returns the frames whose
// entries shrank.
func (s *space) protect(r addr.Range, perm pagetable.Entry) []addr.PFN {
	s.Helper()
	var stale []addr.PFN
	for !r.IsEmpty() {
		var gone pagetable.Retired
		s.change(func(tok pagetable.Token) {
			part, there := s.t.NextLeaves(r)
			r.Start = part.End
			if !there {
				return
			}
			p := s.t.PlanProtect(tok, part, perm)
			var spare pagetable.Spare
			for range p.Tables {
				spare.Add(s.alloc())
			}
			stale = s.t.Protect(tok, part, perm, p, &spare, &gone, stale)
			for spare.Len() > 0 {
				s.free(spare.Take())
			}
		})
		s.edited()
		s.drop(gone.All()...)
	}
	return stale
}

// move moves r by delta, where there is nothing, with no frame more in stock than
// was counted, and reports how many there were.
func (s *space) move(r addr.Range, delta addr.GVA) (counted int) {
	s.Helper()
	var stock []addr.PFN
	var parts [][]pagetable.Moved
	var gone []pagetable.Dropped
	s.change(func(tok pagetable.Token) {
		var needs pagetable.MoveNeeds
		for q := r; !q.IsEmpty(); {
			part, there := s.t.MovePart(q, delta)
			if there {
				needs.Add(s.t, tok, part, delta)
			}
			q.Start = part.End
		}
		for range needs.Tables {
			stock = append(stock, s.alloc())
		}
		counted = needs.Tables
		for q := r; !q.IsEmpty(); {
			part, there := s.t.MovePart(q, delta)
			q.Start = part.End
			if !there {
				continue
			}
			var spares [2]pagetable.Spare
			var retired [2]pagetable.Retired
			from, to := s.t.PlanMove(tok, part, delta)
			for i, p := range []pagetable.PathPlan{from, to} {
				for range p.Tables {
					if len(stock) == 0 {
						s.Fatalf("moving %v by %#x takes more than the %d tables that were counted", r, uint64(delta), counted)
					}
					spares[i].Add(stock[0])
					stock = stock[1:]
				}
			}
			parts = append(parts, s.t.TakeLeaves(tok, part, delta, &spares[0], &spares[1], &retired, nil))
			for i := range spares {
				gone = append(gone, retired[i].All()...)
				for spares[i].Len() > 0 {
					stock = append(stock, spares[i].Take())
				}
			}
		}
		for _, moved := range parts {
			s.t.PutLeaves(tok, delta, moved)
		}
	})
	for _, f := range stock {
		s.free(f)
	}
	s.edited()
	s.drop(gone...)
	return counted
}

// fork returns the table of a child.
func (s *space) fork() *space {
	s.Helper()
	parent, child := s.alloc(), s.alloc()
	var old addr.PFN
	s.change(func(tok pagetable.Token) { old = s.t.Share(tok, parent, child) })
	c := s.adopt(child)
	s.edited()
	s.drop(pagetable.Dropped{Frame: old, Level: 4, Moved: true})
	return c
}

func (s *space) close() {
	tok := s.t.LockChange()
	root := s.t.End(tok)
	s.t.UnlockChange(tok)
	s.spaces = slices.DeleteFunc(s.spaces, func(o *space) bool { return o == s })
	s.t.DropRoot(root)
}

// pathOf returns the tables on the way to gva, by level; 0 is the data frame.
func (s *space) pathOf(gva addr.GVA) (path [5]addr.PFN) {
	path[4] = s.t.Root()
	for level := 4; level > 0; level-- {
		e := s.entry(path[level], index(gva, level))
		if !e.Has(pagetable.Present) {
			break
		}
		path[level-1] = e.Frame()
	}
	return path
}

func index(gva addr.GVA, level int) uint64 { return uint64(gva) >> (12 + 9*(level-1)) & 511 }
