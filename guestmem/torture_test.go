package guestmem

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

var (
	soak       = flag.Bool("soak", false, "run the torture tests for a minute each")
	tortureFor = flag.Duration("torture.for", 0, "run the torture tests for so long each")
)

// soakFor is how long a torture test runs.
func soakFor() time.Duration {
	switch {
	case *tortureFor > 0:
		return *tortureFor
	case *soak:
		return time.Minute
	}
	return time.Second
}

// The torture: more goroutines than the reclaimer has pooled slots do everything
// at once to a family of address spaces. What must hold meanwhile:
//
//   - No byte of another space is ever read. Every word that is written to private
//     memory is sealed and says who wrote it: a space's number and a counter of
//     that space. A reader may find zero, its own space's words, and those of an
//     ancestor from before the fork that it descends by (look).
//   - Nothing is lost. Each worker has a word of its own in every page, and knows
//     what it stored there (torture_hand_test.go); some pages have a ledger of
//     what they must hold, and of what they may have held at the instant of a
//     fork (torture_ledger_test.go).
//   - No permission that a section has found is gone, by a change that has
//     returned, before the section ends; and no frame or table that it has walked
//     to is reclaimed before. When a change that takes away has returned, no entry
//     has what it took (torture_section_test.go).
//   - While a window is open, no byte of guest memory changes (frozen).
//   - At rest, every count is that of a full walk (Memory.Check).
//
// Under the invariants tag the library checks itself beside that, and goroutines
// are descheduled at the places where a rule orders two steps
// (invariants.MayYield).
const (
	tortureBase      addr.GVA = 0x40000000 - 16*page // over the border of two leaf tables
	tortureSlots              = 32                   // private pages, mapped and unmapped
	tortureSums               = tortureBase + 0x10000000
	tortureFile               = tortureBase + 0x20000000
	tortureHeap               = tortureBase + 0x30000000
	tortureAway               = tortureBase + 0x38000000 // where slots are moved and come back from
	tortureFilePages          = 8
)

// kin is one address space of the family.
type kin struct {
	as *AddressSpace
	id uint64

	life    sync.RWMutex // held shared by every call, wholly by Close
	closed  bool         // life
	counter atomic.Uint64
	limits  map[uint64]uint64 // immutable: ancestors' counters after the fork

	layout slots
	ledger [ledgerPages]ledgerPage
}

type torture struct {
	t      *testing.T
	m      *Memory
	most   int // spaces in the family
	object *Object
	sums   atomic.Uint64 // successful increments of the shared word
	rest   sync.RWMutex  // held shared for every operation
	hot    atomic.Int64  // the slot that most are at
	// devices is held shared for a device's stores, and exclusively for a fork, where
	// the race detector sees frames: a fork copies what is pinned, and no more than on
	// hardware is anything promised of what a device stores at that moment. Nil elsewhere.
	devices *sync.RWMutex

	mu     sync.Mutex
	family []*kin
	lastID uint64

	// What a torture with more to stop and to end does around a rest, and once a
	// space is closed; nil for nothing.
	beforeRest, afterRest func()
	afterClose            func(*kin)

	done    atomic.Bool
	counts  [nDid]atomic.Uint64
	checked atomic.Uint64 // words looked at
}

func (x *torture) fail(format string, args ...any) {
	x.t.Helper()
	x.done.Store(true)
	x.t.Errorf(format, args...)
}

// tolerable are the errors that races with other calls explain.
func tolerable(err error) bool {
	return err == nil || errors.Is(err, ErrNotMapped) || errors.Is(err, ErrAccess) ||
		errors.Is(err, ErrNoMemory) || errors.Is(err, ErrNoSpace)
}

// pick returns a space that is held open until it is let go.
func (x *torture) pick(rng *rand.Rand) *kin {
	x.mu.Lock()
	k := x.family[rng.IntN(len(x.family))]
	x.mu.Unlock()
	k.life.RLock()
	if k.closed {
		k.life.RUnlock()
		return nil
	}
	return k
}

func (x *torture) join(as *AddressSpace, parent *kin, ledger *[ledgerPages]beforeFork) *kin {
	k := &kin{as: as, limits: make(map[uint64]uint64)}
	if parent != nil {
		for id, n := range parent.limits {
			k.limits[id] = n
		}
		// Whatever the child has of the parent was written before now.
		k.limits[parent.id] = parent.counter.Load()
		for i := range k.ledger {
			k.ledger[i].inherit(&parent.ledger[i], ledger[i])
		}
	}
	x.mu.Lock()
	x.lastID++
	k.id = x.lastID
	x.family = append(x.family, k)
	x.mu.Unlock()
	return k
}

// leave closes a space once every call in it has ended, unless no more than keep
// are left: of two workers that would close the last two, one does.
func (x *torture) leave(k *kin, keep int) {
	x.mu.Lock()
	if len(x.family) <= keep {
		x.mu.Unlock()
		return
	}
	for i, other := range x.family {
		if other == k {
			x.family = append(x.family[:i], x.family[i+1:]...)
			break
		}
	}
	x.mu.Unlock()
	k.life.Lock()
	defer k.life.Unlock()
	if !k.closed {
		k.closed = true
		if err := k.as.Close(); err != nil {
			x.fail("close: %v", err)
		}
		if x.afterClose != nil {
			x.afterClose(k)
		}
	}
}

// A word is sealed so that none but a whole one is taken for one:
//
//	63      50 49      30 29       0
//	| seal   | space    | counter  |
func sealed(id, n uint64) uint64 {
	w := id<<30 | n
	return w | sealOf(w)<<50
}

// sealOf has its highest bit set, so that the last byte of a word is not zero.
func sealOf(w uint64) uint64 { return w*0x9e3779b97f4a7c15>>51 | 1<<13 }

func (k *kin) next() uint64 { return sealed(k.id, k.counter.Add(1)) }

// look checks a word that was read in k.
func (x *torture) look(k *kin, gva addr.GVA, w uint64) {
	x.checked.Add(1)
	if w == 0 {
		return
	}
	id, n := w>>30&(1<<20-1), w&(1<<30-1)
	limit, ancestor := k.limits[id]
	switch {
	case w != sealed(id, n):
		x.fail("space %d reads %#x at %v, which nobody wrote", k.id, w, gva)
	case id == k.id && n <= k.counter.Load():
	case ancestor && n <= limit:
	default:
		x.fail("space %d reads word %d of space %d at %v; may read %v", k.id, n, id, gva, k.limits)
	}
}

func (x *torture) worker(w *hand, owned bool, step stepFunc) {
	var h *Handle
	if owned {
		h = x.m.NewHandle()
		defer h.Close()
	}
	for !x.done.Load() {
		x.rest.RLock()
		x.operation(w, h, step)
		x.rest.RUnlock()
	}
}

// stepFunc does something to k, by a lookup or a change, and says what.
type stepFunc func(k *kin, a Accessor, w *hand) (what int)

func (x *torture) operation(w *hand, h *Handle, step stepFunc) {
	k := x.pick(w.rng)
	if k == nil {
		return
	}
	var a Accessor
	lent := h == nil || w.rng.IntN(4) == 0
	if lent {
		a = k.as.borrow()
	} else {
		a = k.as.With(h)
	}
	what := step(k, a, w)
	if lent {
		a.giveBack()
	}
	k.life.RUnlock()
	x.counts[what].Add(1)
	if what == didClose {
		x.leave(k, 1)
	}
}

// stuckAfter is how long after its time a torture may take to come to rest: who has no
// processor to himself takes long to stop, and to check every space that it leaves.
const stuckAfter = 5 * time.Minute

// numberedPages is a source whose bytes are their page's number.
type numberedPages struct{}

func (numberedPages) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off + int64(i)) / int64(page))
	}
	return len(p), nil
}

func newTorture(t *testing.T, m *Memory) *torture {
	x := &torture{t: t, m: m, most: 12}
	x.yieldOneIn(24)
	var err error
	x.object, err = m.NewFileObject(numberedPages{}, tortureFilePages*int64(page), "numbered")
	mustDo(t, err)
	as := newSpace(t, m)
	mapAt(t, as, ledgerAt(0), (tortureSlots+ledgerPages)*page, rw)
	mustMap(t, as, MapOptions{Addr: tortureSums, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustMap(t, as, MapOptions{Addr: tortureFile, Length: tortureFilePages * page, Prot: rw, Flags: MapPrivate | MapFixed, Object: x.object})
	as.SetBreak(tortureHeap)
	x.join(as, nil, nil)
	return x
}

// yieldOneIn has the library deschedule goroutines until the test ends.
func (x *torture) yieldOneIn(n uint32) {
	before := invariants.YieldOneIn(n)
	x.t.Cleanup(func() { invariants.YieldOneIn(before) })
}

// run has n workers do step until the time is over, and looks at what they
// leave.
func (x *torture) run(n int, step stepFunc) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { x.worker(newHand(i), i%2 == 0, step) })
	}
	watch := time.AfterFunc(soakFor()+stuckAfter, func() {
		debug.SetTraceback("all")
		panic("guestmem: the torture is stuck")
	})
	defer watch.Stop()
	for end := time.Now().Add(soakFor()); time.Now().Before(end) && !x.done.Load(); {
		time.Sleep(min(soakFor()/20, 200*time.Millisecond))
		x.atRest()
	}
	x.done.Store(true)
	wg.Wait()
	x.atRest()
	for len(x.family) > 0 {
		x.leave(x.family[0], 0)
		mustCheck(x.t, x.m)
	}
	x.object.Close()
	if testing.Verbose() {
		var n []uint64
		for i := range nDid {
			n = append(n, x.counts[i].Load())
		}
		x.t.Logf("operations %v, %d words looked at, %+v", n, x.checked.Load(), x.m.Stats())
	}
}

// atRest stops the workers between two operations and looks at everything.
func (x *torture) atRest() {
	x.rest.Lock()
	defer x.rest.Unlock()
	if x.beforeRest != nil {
		x.beforeRest()
		defer x.afterRest()
	}
	if err := x.m.Check(); err != nil {
		x.fail("Check: %v", err)
	}
	for _, k := range x.family {
		for i := range k.ledger {
			x.ledgerLoad(k, i)
		}
	}
	if len(x.family) > 0 {
		v, err := x.family[0].as.Load64(ctx, tortureSums)
		if err != nil && !errors.Is(err, ErrNoMemory) || err == nil && v != x.sums.Load() {
			x.fail("the shared word is %d (%v) after %d increments", v, err, x.sums.Load())
		}
	}
}

func TestR4NoByteOfAnotherSpaceIsEverRead(t *testing.T) {
	for _, mib := range []uint64{1, 16} { // the first runs out of memory all the time
		t.Run(fmt.Sprintf("MiB=%d", mib), func(t *testing.T) {
			x := newTorture(t, newMemory(t, mib<<20))
			x.run(6*runtime.GOMAXPROCS(0), x.step) // the reclaimer has 4 pooled slots a processor
		})
	}
}

func TestR8TortureWithAView(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	x := newTorture(t, m)
	x.run(6*runtime.GOMAXPROCS(0), x.step)
	m.domain.Synchronize()
	r.Flush()
	r.settle(t)
	if r.nStops == 0 {
		t.Error("nothing was ever stopped")
	}
}
