package guestmem

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/pagetable"
)

// recorder is a view that translates nothing and checks that it is told all
// that a view has to be told (R8). It compares what page tables say at the
// moments when it learns of something with what they said before:
//
//   - between Resume and Stop, and between calls, no live entry above the
//     leaves changes, nor the root; absent ones may appear, and a leaf of 2 MiB
//     may come to allow more or less
//   - a leaf that was cleared, replaced or lost a permission is in an
//     Invalidate, which came while its frame was still held or the space stopped
//   - a frame that was a table and is one no more was retired, and is nothing
//     else until it was handed back
type recorder struct {
	m *Memory

	mu         sync.Mutex
	rng        *rand.Rand
	stops      map[*AddressSpace]int
	upper      map[*AddressSpace]*upperSeen
	leaves     map[*AddressSpace]*leavesSeen // when it was last settled
	invalid    map[*AddressSpace]map[addr.PFN]bool
	tables     map[addr.PFN]bool // were tables, not handed back since
	quarantine map[addr.PFN]bool
	hoard      bool // hand back on Flush only
	flushes    int
	nStops     int
	errs       []string
}

type slotOf struct {
	table addr.PFN
	i     uint64
}

type upperSeen struct {
	root    addr.PFN
	entries map[slotOf]pagetable.Entry
}

type leavesSeen struct {
	root   addr.PFN
	leaves map[addr.GVA]pagetable.Entry // with what the path allows
}

func attachRecorder(tb testing.TB, m *Memory) *recorder {
	r := &recorder{
		m: m, rng: rand.New(rand.NewPCG(1, 2)),
		stops:      make(map[*AddressSpace]int),
		upper:      make(map[*AddressSpace]*upperSeen),
		leaves:     make(map[*AddressSpace]*leavesSeen),
		invalid:    make(map[*AddressSpace]map[addr.PFN]bool),
		tables:     make(map[addr.PFN]bool),
		quarantine: make(map[addr.PFN]bool),
	}
	mustDo(tb, m.AttachView(r))
	return r
}

func (r *recorder) complain(format string, args ...any) {
	if len(r.errs) < 10 {
		r.errs = append(r.errs, fmt.Sprintf(format, args...))
	}
}

// walk calls fn for every present entry, leaves with what the whole path allows: a
// leaf of 2 MiB as an entry above the leaves, and as 512 leaves.
func (r *recorder) walk(as *AddressSpace, fn func(at slotOf, level int, gva addr.GVA, e, path pagetable.Entry)) addr.PFN {
	root := as.Root()
	var visit func(f addr.PFN, level int, base addr.GVA, path pagetable.Entry)
	visit = func(f addr.PFN, level int, base addr.GVA, path pagetable.Entry) {
		n := uint64(arena.EntriesPerTable)
		if level == 4 {
			n /= 2
		}
		for i := range n {
			e := pagetable.Entry(r.m.arena.Load(f, i))
			if !e.Has(pagetable.Present) {
				continue
			}
			gva := base + addr.GVA(i)<<(12+9*(level-1))
			and := path & e & (pagetable.Writable | pagetable.User)
			if level == 2 && e.Has(pagetable.Huge) {
				fn(slotOf{f, i}, 2, gva, bareHuge(e), 0)
				for k := range addr.PFN(pagetable.HugeFrames) {
					fn(slotOf{f, i}, 1, gva+addr.GVA(k)*page, pagetable.LeafEntry(e.Frame()+k, 0), and|(path|e)&pagetable.NoExec)
				}
				continue
			}
			fn(slotOf{f, i}, level, gva, e, and|(path|e)&pagetable.NoExec)
			if level > 1 {
				visit(e.Frame(), level-1, gva, and|(path|e)&pagetable.NoExec)
			}
		}
	}
	visit(root, 4, 0, pagetable.Writable|pagetable.User)
	return root
}

// bareHuge is a leaf of 2 MiB without what it allows, and others as they are.
func bareHuge(e pagetable.Entry) pagetable.Entry {
	if e.Has(pagetable.Present | pagetable.Huge) {
		return pagetable.LeafEntry(e.Frame(), pagetable.Huge)
	}
	return e
}

func (r *recorder) lookAtUpper(as *AddressSpace) {
	s := &upperSeen{entries: make(map[slotOf]pagetable.Entry)}
	s.root = r.walk(as, func(at slotOf, level int, _ addr.GVA, e, _ pagetable.Entry) {
		if level > 1 {
			s.entries[at] = e
		}
	})
	r.upper[as] = s
}

func (r *recorder) mustStand(as *AddressSpace) {
	s := r.upper[as]
	if s == nil {
		return
	}
	if root := as.Root(); root != s.root {
		r.complain("root of a running space changed from %v to %v", s.root, root)
		return
	}
	for at, e := range s.entries {
		if now := bareHuge(pagetable.Entry(r.m.arena.Load(at.table, at.i))); now != e {
			r.complain("entry %d of table %v changed under a running space from %#x to %#x", at.i, at.table, uint64(e), uint64(now))
		}
	}
}

func (r *recorder) Stop(as *AddressSpace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nStops++
	if r.stops[as]++; r.stops[as] == 1 {
		r.mustStand(as)
	}
}

func (r *recorder) Resume(as *AddressSpace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stops[as]--
	switch n := r.stops[as]; {
	case n < 0:
		r.complain("Resume without Stop")
	case n == 0:
		r.lookAtUpper(as)
	}
}

func (r *recorder) Invalidate(as *AddressSpace, frames []addr.PFN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.invalid[as] == nil {
		r.invalid[as] = make(map[addr.PFN]bool)
	}
	for _, f := range frames {
		r.invalid[as][f] = true
		if r.m.pool.Of(f) == 0 && r.stops[as] == 0 {
			r.complain("frame %v was free before it was invalidated", f)
		}
	}
}

func (r *recorder) RetireTables(frames []addr.PFN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range frames {
		if r.quarantine[f] {
			r.complain("table %v retired twice", f)
		}
		if n := r.m.pool.Of(f); n != 0 {
			r.complain("table %v retired with %d references", f, n)
		}
		r.quarantine[f] = true
	}
	if !r.hoard && r.rng.IntN(8) == 0 {
		r.handBack()
	}
}

func (r *recorder) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushes++
	r.handBack()
}

func (r *recorder) handBack() {
	var frames []addr.PFN
	for f := range r.quarantine {
		if n := r.m.pool.Of(f); n != 0 {
			r.complain("table %v in quarantine has %d references", f, n)
		}
		frames = append(frames, f)
		delete(r.tables, f)
	}
	clear(r.quarantine)
	r.m.ReuseTables(frames)
}

type failer interface {
	Helper()
	Errorf(string, ...any)
}

// settle compares, while no call is in progress, what became of every leaf and
// table since the last time with what the view was told.
func (r *recorder) settle(t failer) {
	t.Helper()
	r.m.domain.Synchronize()
	r.mu.Lock()
	defer r.mu.Unlock()
	isTable := make(map[addr.PFN]bool)
	isData := make(map[addr.PFN]bool)
	spaces := make(map[*AddressSpace]bool)
	for _, as := range r.m.sortedSpaces() {
		spaces[as] = true
		if n := r.stops[as]; n != 0 {
			r.complain("%d stops without Resume", n)
		}
		r.mustStand(as)
		r.lookAtUpper(as)
		now := &leavesSeen{root: as.Root(), leaves: make(map[addr.GVA]pagetable.Entry)}
		isTable[now.root] = true
		r.walk(as, func(_ slotOf, level int, gva addr.GVA, e, path pagetable.Entry) {
			if level > 1 {
				if !e.Has(pagetable.Huge) {
					isTable[e.Frame()] = true
				}
				return
			}
			isData[e.Frame()] = true
			now.leaves[gva] = pagetable.LeafEntry(e.Frame(), path)
		})
		if was := r.leaves[as]; was != nil {
			r.compareLeaves(as, was, now)
		}
		r.leaves[as] = now
	}
	for as := range r.leaves {
		if !spaces[as] {
			delete(r.leaves, as)
			delete(r.upper, as)
			delete(r.stops, as)
		}
	}
	clear(r.invalid)
	for f := range r.tables {
		if !isTable[f] && !r.quarantine[f] {
			r.complain("table %v is a table no more and was not retired", f)
		}
	}
	for f := range r.quarantine {
		if isTable[f] || isData[f] {
			r.complain("table %v is used again and was not handed back", f)
		}
	}
	r.tables = isTable
	for f := range r.quarantine {
		r.tables[f] = true
	}
	if n := r.m.quarantined.Load(); n != uint64(len(r.quarantine)) {
		r.complain("%d tables counted in quarantine, the view has %d", n, len(r.quarantine))
	}
	for _, e := range r.errs {
		t.Errorf("view: %s", e)
	}
	r.errs = nil
}

func (r *recorder) compareLeaves(as *AddressSpace, was, now *leavesSeen) {
	for gva, before := range was.leaves {
		after, there := now.leaves[gva]
		lost := before&^after&(pagetable.Writable|pagetable.User) | after&^before&pagetable.NoExec
		if there && after.Frame() == before.Frame() {
			if lost == 0 {
				continue
			}
			if lost == pagetable.Writable && now.root != was.root {
				continue // lost by a new root, which every vCPU has loaded since
			}
		}
		if !r.invalid[as][before.Frame()] {
			r.complain("page at %v was %#x and is %#x; frame %v was not invalidated", gva, uint64(before), uint64(after), before.Frame())
		}
	}
}

// The family of the model, with a view that checks what it is told.
func TestR8FamilyAgainstModelWithAView(t *testing.T) {
	testFamily(t, func(rt *rapid.T, m *Memory) func(*rapid.T) {
		r := attachRecorder(t, m)
		return func(rt *rapid.T) { r.settle(rt) }
	})
}

// And that whose memory comes 2 MiB at a time.
func TestR8HugeLeavesAgainstModelWithAView(t *testing.T) {
	testHugeFamily(t, func(rt *rapid.T, m *Memory) func(*rapid.T) {
		r := attachRecorder(t, m)
		return func(rt *rapid.T) { r.settle(rt) }
	})
}

// Every kind of change by itself, so that what is missing has a name.
func TestR8ViewsAreToldOfEveryChange(t *testing.T) {
	const far = 1 << 31 // a page directory of its own
	for name, op := range map[string]func(t *testing.T, as *AddressSpace) error{
		"unmap a page":      func(_ *testing.T, as *AddressSpace) error { return as.Unmap(pg(1), page) },
		"unmap the table":   func(_ *testing.T, as *AddressSpace) error { return as.Unmap(pg(0), 8*page) },
		"unmap all":         func(_ *testing.T, as *AddressSpace) error { return as.Unmap(0, uint64(DefaultHighest)) },
		"discard":           func(_ *testing.T, as *AddressSpace) error { return as.Discard(pg(0), 8*page) },
		"protect":           func(_ *testing.T, as *AddressSpace) error { return as.Protect(pg(0), 8*page, r_) },
		"protect to none":   func(_ *testing.T, as *AddressSpace) error { return as.Protect(pg(0), 8*page, ProtNone) },
		"take execute away": func(_ *testing.T, as *AddressSpace) error { return as.Protect(pg(20), page, rw) },
		"map over": func(_ *testing.T, as *AddressSpace) error {
			_, err := as.Map(ctx, MapOptions{Addr: pg(0), Length: 8 * page, Prot: rw, Flags: anon | MapFixed})
			return err
		},
		"fork": func(_ *testing.T, as *AddressSpace) error { _, err := as.Fork(); return err },
		"write": func(_ *testing.T, as *AddressSpace) error {
			_, err := as.WriteAt(ctx, []byte("w"), pg(2))
			return err
		},
		"pin": func(t *testing.T, as *AddressSpace) error {
			p, err := as.Pin(ctx, addr.Range{Start: pg(2), End: pg(4)}, Read)
			if err == nil {
				t.Cleanup(func() { _ = p.Release() })
			}
			return err
		},
		"write to a new table": func(_ *testing.T, as *AddressSpace) error {
			_, err := as.WriteAt(ctx, []byte("w"), pg(0)+far)
			return err
		},
		"copy of an object's page": func(_ *testing.T, as *AddressSpace) error {
			_, err := as.WriteAt(ctx, []byte("w"), pg(30))
			return err
		},
		"heap shrinks": func(_ *testing.T, as *AddressSpace) error { _, err := as.Brk(pg(41)); return err },
	} {
		for _, forks := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%s, forked %d times", name, forks), func(t *testing.T) {
				m := newMemory(t, 8<<20)
				r := attachRecorder(t, m)
				as := newSpace(t, m)
				mapAt(t, as, pg(0), 8*page, rw)
				mapAt(t, as, pg(20), page, rw|ProtExec)
				mapAt(t, as, pg(0)+far, 2*page, rw)
				o, err := m.NewFileObject(zeroReader{}, 4*int64(page), "zeroes")
				mustDo(t, err)
				t.Cleanup(o.Close)
				mustMap(t, as, MapOptions{Addr: pg(30), Length: 2 * page, Prot: rw, Flags: MapPrivate | MapFixed, Object: o})
				mustRead(t, as, pg(30), 1)
				as.SetBreak(pg(40))
				_, err = as.Brk(pg(44))
				mustDo(t, err)
				for i := range 4 {
					mustWrite(t, as, pg(i), []byte("page"))
					mustWrite(t, as, pg(40+i), []byte("heap"))
				}
				mustWrite(t, as, pg(20), []byte("page"))
				for range forks {
					mustFork(t, as)
				}
				if forks == 2 {
					mustWrite(t, as, pg(3), []byte("some of it own"))
				}
				r.settle(t)
				mustDo(t, op(t, as))
				r.settle(t)
				mustCheck(t, m)
				for _, s := range m.sortedSpaces() {
					if name != "unmap all" {
						mustWrite(t, s, pg(0)+far+page, []byte("afterwards"))
					}
				}
				r.settle(t)
			})
		}
	}
}

type zeroReader struct{}

func (zeroReader) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

// Tables in quarantine are counted, are not leaked, and come back when memory is
// short.
func TestR8QuarantineIsFlushedWhenMemoryIsShort(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 64 * page, Grow: page})
	mustDo(t, err)
	r := attachRecorder(t, m)
	r.hoard = true
	as := newSpace(t, m)
	mapAt(t, as, pg(0), 4*page, rw)
	mustWrite(t, as, pg(0), []byte("x"))
	for i := range 100 {
		child := mustFork(t, as)
		mustWrite(t, child, pg(0), []byte{byte(i)})
		mustWrite(t, as, pg(0), []byte{byte(i)})
		mustDo(t, child.Close())
		r.settle(t)
		s := m.Stats()
		if s.Quarantined != uint64(len(r.quarantine)) {
			t.Fatalf("%d in quarantine, the view has %d", s.Quarantined, len(r.quarantine))
		}
		if s.FramesInUse+s.FramesFree+s.Quarantined != s.FramesTotal {
			t.Fatalf("frames do not add up: %+v", s)
		}
	}
	if r.flushes == 0 {
		t.Error("the quarantine was never asked for")
	}
	mustDo(t, as.Close())
	r.Flush()
	mustCheck(t, m)
	if s := m.Stats(); s.FramesInUse != 0 || s.Quarantined != 0 {
		t.Errorf("left at the end: %+v", s)
	}
	mustDo(t, m.DetachView())
	mustDo(t, m.Close())
}

func TestR8OneViewBeforeTheFirstSpace(t *testing.T) {
	m := newMemory(t, 1<<20)
	as := newSpace(t, m)
	mustErrno(t, "attach beside a space", m.AttachView(&recorder{}), 16)
	mustDo(t, as.Close())
	attachRecorder(t, m)
	mustErrno(t, "attach twice", m.AttachView(&recorder{}), 16)
	as = newSpace(t, m)
	mustErrno(t, "detach beside a space", m.DetachView(), 16)
	mustDo(t, as.Close())
	m.view.Flush()
	mustDo(t, m.DetachView())
}
