package vmarea_test

import (
	"flag"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

var soak = flag.Bool("soak", false, "run the torture for a minute")

const (
	torturePages   = 48
	tortureReaders = 3 // per side
	tortureSides   = 6 // a tree, and those that descend from it
)

// section is the read section of one reader: odd while it is in one.
type section struct {
	n atomic.Uint64
	_ [56]byte
}

// side is one address space: a tree, its change lock, its readers.
//
// clock, dead and forking are ghosts: they say what must hold. A change writes
// the time at which it marked an area into dead, and only then makes it the
// time: a reader that finds the time at its beginning began after the mark.
type side struct {
	tree     *vmarea.Tree
	mu       sync.Mutex // the change lock
	sections [tortureReaders]section
	clock    atomic.Uint64
	dead     sync.Map // *vmarea.Area to uint64
	forking  atomic.Uint64
	passed   atomic.Uint64 // lookups that found an area
	refused  atomic.Uint64
	adopted  atomic.Uint64
	back     atomic.Uint64 // areas that came back
}

// grace waits for the read sections that have begun.
func (s *side) grace() {
	for i := range s.sections {
		n := s.sections[i].n.Load()
		for n%2 == 1 && s.sections[i].n.Load() == n {
			runtime.Gosched()
		}
	}
}

// mark marks r, and from then on holds the areas in it for dead.
func (s *side) mark(c *vmarea.Change, r addr.Range) (marked []*vmarea.Area) {
	c.StartWrite(r)
	return s.condemn(r)
}

// condemn is the ghost part of mark.
func (s *side) condemn(r addr.Range) (marked []*vmarea.Area) {
	now := s.clock.Load() + 1
	s.tree.Snapshot().Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		s.dead.Store(a, now)
		marked = append(marked, a)
		return true
	})
	s.clock.Store(now)
	return marked
}

// revive takes back, just before they are unmarked, those that live on.
func (s *side) revive(marked []*vmarea.Area) {
	snapshot := s.tree.Snapshot()
	for _, a := range marked {
		if snapshot.Find(a.Start) == a {
			s.dead.Delete(a)
		}
	}
}

// publish publishes the edits of a change that has marked so many areas. What earlier
// changes took away and this one brings back lives from then on.
func (s *side) publish(c *vmarea.Change, marked []*vmarea.Area) {
	c.Ascend(0, func(a *vmarea.Area) bool {
		if !slices.Contains(marked, a) {
			if _, back := s.dead.LoadAndDelete(a); back {
				s.back.Add(1)
			}
		}
		return true
	})
	c.Publish()
}

// read looks up one address in one section.
func (s *side) read(t *testing.T, i int, at addr.GVA) vmarea.Status {
	sec := &s.sections[i].n
	sec.Add(1)
	defer sec.Add(1)
	began, fork := s.clock.Load(), s.forking.Load()
	a, st := s.tree.StartRead(at)
	if st != vmarea.Found {
		return st
	}
	if when, ok := s.dead.Load(a); ok && when.(uint64) <= began {
		t.Errorf("a section that began at %d passes on %v, marked at %v", began, a, when)
	}
	if fork != 0 && s.forking.Load() == fork {
		t.Errorf("a section that began during fork %d passes", fork)
	}
	if !a.Contains(at) || !s.tree.Owns(a) {
		t.Errorf("lookup of %v found %v", at, a)
	}
	s.tree.EndRead(a)
	return st
}

func (s *side) reader(t *testing.T, i int, stop *atomic.Bool) {
	rng := rand.New(rand.NewPCG(uint64(i), 7))
	for !stop.Load() {
		at := gva(rng.Uint64N(torturePages))
		switch s.read(t, i, at) {
		case vmarea.Found:
			s.passed.Add(1)
		case vmarea.Marked:
			s.refused.Add(1)
			s.mu.Lock() // wait for the change
			s.mu.Unlock()
		case vmarea.Foreign:
			s.mu.Lock()
			c := s.tree.StartChange()
			if c.Adopt(at) {
				s.adopted.Add(1)
			}
			s.publish(c, nil)
			c.EndWriteAll()
			s.mu.Unlock()
		}
		if rng.IntN(8) == 0 {
			n, prev := 0, addr.GVA(0)
			snapshot := s.tree.Snapshot()
			snapshot.Ascend(0, func(a *vmarea.Area) bool {
				if a.Start < prev {
					t.Errorf("snapshot out of order at %v", a)
				}
				n, prev = n+1, a.End
				return true
			})
			if n != snapshot.Len() {
				t.Errorf("snapshot of %d areas has %d", snapshot.Len(), n)
			}
		}
	}
}

// step runs one random change.
func (s *side) step(rng *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := rng.Uint64N(torturePages)
	r := pages(from, min(from+1+rng.Uint64N(8), torturePages))
	c := s.tree.StartChange()
	switch rng.IntN(7) {
	case 0, 1: // map: over what is there it takes away, else it only adds
		at := vmarea.Attr{Prot: vmarea.Prot(rng.IntN(8))}
		free := c.IsFree(r)
		c.Insert(r, at)
		if free {
			s.publish(c, nil)
			c.EndWriteAll()
			return
		}
		s.takeAway(c, r)
	case 2: // unmap
		c.Remove(r)
		s.takeAway(c, r)
	case 3: // protect
		c.SetProt(r, vmarea.Prot(rng.IntN(8)))
		s.takeAway(c, r)
	case 4: // unmap, downgraded
		c.Remove(r)
		marked := s.mark(c, r)
		s.publish(c, marked)
		s.revive(marked)
		yield()
		c.Downgrade()
		s.grace()
		c.EndWriteAll()
	case 5: // unmap under the mark of the whole tree
		c.Remove(r)
		c.StartWriteAll()
		marked := s.condemn(r)
		yield()
		s.grace()
		yield()
		s.publish(c, marked)
		s.revive(marked)
		c.EndWriteAll()
	case 6: // give up
		c.SetProt(r, vmarea.Prot(rng.IntN(8)))
		marked := s.mark(c, r)
		yield()
		s.revive(marked)
		c.Abort()
	}
}

func (s *side) takeAway(c *vmarea.Change, r addr.Range) {
	marked := s.mark(c, r)
	yield()
	s.grace()
	yield()
	s.publish(c, marked)
	yield()
	s.revive(marked)
	c.EndWriteAll()
}

// fork runs a fork and returns the child.
func (s *side) fork(n uint64) *side {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.tree.StartChange()
	c.StartWriteAll()
	s.forking.Store(n)
	s.grace()
	child := &side{tree: c.Fork()}
	yield()
	s.forking.Store(0)
	c.EndWriteAll()
	return child
}

// yield lets another goroutine run, now and then: lookups and changes are so
// short that they would hardly ever meet on two cores.
func yield() {
	if rand.IntN(4) == 0 {
		runtime.Gosched()
	}
}

// allHappened reports whether lookups have passed on every side, and areas were adopted
// and came back on some.
func allHappened(sides []*side) bool {
	passed, adopted, back := true, false, false
	for _, s := range sides {
		passed = passed && s.passed.Load() > 0
		adopted = adopted || s.adopted.Load() > 0
		back = back || s.back.Load() > 0
	}
	return passed && adopted && back
}

// TestR2Torture runs a family of trees, each with readers beside a changer
// that maps, unmaps, protects, downgrades, aborts and forks. No lookup whose
// section began after a mark passes until the unmark (model change.pml, P3).
func TestR2Torture(t *testing.T) {
	d := 400 * time.Millisecond
	if *soak {
		d = time.Minute
	}
	for _, p := range []vmarea.HookPoint{vmarea.AfterState, vmarea.AfterTree, vmarea.AfterArea} {
		vmarea.SetReadHook(t, p, func(*vmarea.Tree) { yield() })
	}
	var over, stop atomic.Bool
	var wg sync.WaitGroup
	var sides []*side
	run := func(s *side) {
		sides = append(sides, s)
		for i := range tortureReaders {
			wg.Go(func() { s.reader(t, i, &stop) })
		}
	}
	first := &side{tree: newTree(t, pages(0, torturePages))}
	run(first)
	var changers sync.WaitGroup
	end := time.Now().Add(d)
	steps := func(s *side, seed uint64, goesOn func() bool) {
		rng := rand.New(rand.NewPCG(seed, 11))
		for goesOn() {
			for range 20 {
				s.step(rng)
			}
			s.fork(1 + rng.Uint64()>>1) // a child that is never looked at
		}
	}
	for n := range uint64(tortureSides) {
		parent := sides[len(sides)-1]
		part := end.Add(-d * time.Duration(tortureSides-1-n) / tortureSides)
		steps(parent, n, func() bool { return time.Now().Before(part) })
		if n < tortureSides-1 {
			child := parent.fork(n + 1)
			run(child)
			time.Sleep(2 * time.Millisecond) // lookups adopt, before changes replace
			for i := 0; child.adopted.Load() == 0 && i < 5000; i++ {
				time.Sleep(time.Millisecond) // unless there is nothing to adopt
			}
		}
		changers.Go(func() { steps(parent, n+100, func() bool { return !over.Load() }) })
	}
	// Where others need the processors too, it takes longer until all has happened.
	for limit := end.Add(time.Minute); time.Now().Before(end) || !allHappened(sides) && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	over.Store(true)
	changers.Wait()
	stop.Store(true)
	wg.Wait()
	adopted, back := uint64(0), uint64(0)
	for i, s := range sides {
		adopted += s.adopted.Load()
		back += s.back.Load()
		if err := s.tree.CheckInvariants(); err != nil {
			t.Errorf("side %d: %v", i, err)
		}
		t.Logf("side %d: %d passed, %d refused, %d adopted", i, s.passed.Load(), s.refused.Load(), s.adopted.Load())
		if s.passed.Load() == 0 {
			t.Errorf("side %d: no lookup passed", i)
		}
	}
	if adopted == 0 {
		t.Error("no area was adopted")
	}
	if back == 0 {
		t.Error("no area came back")
	}
}
