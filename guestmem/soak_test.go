package guestmem

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

var soak = flag.Bool("soak", false, "run the torture tests for a minute each")

// soakFor is how long a torture test runs.
func soakFor() time.Duration {
	if *soak {
		return time.Minute
	}
	return time.Second
}

// The torture: more goroutines than the reclaimer has pooled slots do everything
// at once to a family of address spaces. Every word that is written to private
// memory says who wrote it, a space's number over a counter of that space. A
// reader may find zero, its own space's words, and those of an ancestor from
// before the fork that it descends by. All else is a byte of another space.

const (
	tortureBase  addr.GVA = 0x40000000 - 16*page
	tortureSlots          = 32 // private pages, mapped and unmapped
	tortureSums           = tortureBase + 0x10000000
	tortureFile           = tortureBase + 0x20000000
	tortureHeap           = tortureBase + 0x30000000
	filePages             = 8
)

// kin is one address space of the family.
type kin struct {
	as *AddressSpace
	id uint64

	life    sync.RWMutex // held shared by every call, wholly by Close
	closed  bool         // life
	counter atomic.Uint64
	limits  map[uint64]uint64 // immutable: ancestors' counters after the fork
}

type torture struct {
	t      *testing.T
	m      *Memory
	object *Object
	sums   atomic.Uint64 // successful increments of the shared word

	mu     sync.Mutex
	family []*kin
	lastID uint64

	done    atomic.Bool
	counts  [16]atomic.Uint64
	checked atomic.Uint64 // words looked at
}

func (x *torture) fail(format string, args ...any) {
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

func (x *torture) join(as *AddressSpace, parent *kin) *kin {
	k := &kin{as: as, limits: make(map[uint64]uint64)}
	if parent != nil {
		for id, n := range parent.limits {
			k.limits[id] = n
		}
		// Whatever the child has of the parent was written before now.
		k.limits[parent.id] = parent.counter.Load()
	}
	x.mu.Lock()
	x.lastID++
	k.id = x.lastID
	x.family = append(x.family, k)
	x.mu.Unlock()
	return k
}

// leave closes a space once every call in it has ended.
func (x *torture) leave(k *kin) {
	x.mu.Lock()
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
	}
}

// look checks a word that was read in k.
func (x *torture) look(k *kin, gva addr.GVA, w uint64) {
	x.checked.Add(1)
	id, n := w>>40, w&(1<<40-1)
	limit, ancestor := k.limits[id]
	switch {
	case w == 0:
	case id == k.id && n <= k.counter.Load():
	case ancestor && n <= limit:
	default:
		x.fail("space %d reads word %d of space %d at %v; may read %v", k.id, n, id, gva, k.limits)
	}
}

func (k *kin) next() uint64 { return k.id<<40 | k.counter.Add(1) }

func (x *torture) worker(seed uint64, owned bool) {
	rng := rand.New(rand.NewPCG(seed, 7))
	var h *Handle
	if owned {
		h = x.m.NewHandle()
		defer h.Close()
	}
	for !x.done.Load() {
		k := x.pick(rng)
		if k == nil {
			continue
		}
		var a Accessor
		var lent bool
		if owned && rng.IntN(4) > 0 {
			a = k.as.With(h)
		} else {
			a, lent = k.as.borrow(), true
		}
		what := x.step(k, a, rng)
		if lent {
			a.giveBack()
		}
		k.life.RUnlock()
		x.counts[what].Add(1)
		if what == opClose {
			x.mu.Lock()
			last := len(x.family) == 1
			x.mu.Unlock()
			if !last {
				x.leave(k)
			}
		}
	}
}

const (
	opRead = iota
	opWrite
	opCopy
	opMap
	opUnmap
	opProtect
	opDiscard
	opFork
	opClose
	opPin
	opBrk
	opSum
	opFile
	opStats
	nOps
)

func (x *torture) step(k *kin, a Accessor, rng *rand.Rand) (what int) {
	as := k.as
	slot := rng.IntN(tortureSlots)
	n := 1 + rng.IntN(min(6, tortureSlots-slot))
	gva, length := tortureBase+addr.GVA(slot)*page, uint64(n)*page
	word := gva + addr.GVA(rng.IntN(int(page/8))*8)
	var err error
	switch d := rng.IntN(100); {
	case d < 25:
		var w uint64
		if w, err = a.Load64(ctx, word); err == nil {
			x.look(k, word, w)
		}
		what = opRead
	case d < 45:
		err = a.Store64(ctx, word, k.next())
		what = opWrite
	case d < 55:
		err = x.copies(k, a, gva, n, rng)
		what = opCopy
	case d < 62:
		prot := []Prot{rw, rw, r_, rw | ProtExec, ProtNone}[rng.IntN(5)]
		_, err = as.Map(ctx, MapOptions{Addr: gva, Length: length, Prot: prot, Flags: anon | MapFixed})
		what = opMap
	case d < 66:
		err = as.Unmap(gva, length)
		what = opUnmap
	case d < 73:
		err = as.Protect(gva, length, []Prot{rw, rw, r_, ProtNone}[rng.IntN(4)])
		what = opProtect
	case d < 76:
		err = as.Discard(gva, length)
		what = opDiscard
	case d < 81:
		err = x.fork(k)
		what = opFork
	case d < 85:
		what = opClose
	case d < 88:
		err = x.pin(k, gva, n, rng)
		what = opPin
	case d < 90:
		_, err = as.Brk(tortureHeap + addr.GVA(rng.IntN(8))*page)
		if err == nil {
			err = a.Store64(ctx, tortureHeap+8, k.next())
		}
		what = opBrk
	case d < 94:
		err = x.sum(a)
		what = opSum
	case d < 98:
		err = x.file(k, a, rng)
		what = opFile
	default:
		if rng.IntN(4) == 0 {
			_ = x.m.Check() // may take frames in flight for lost; must not fail otherwise
		} else {
			x.m.Stats()
			_ = as.String()
			as.Stats()
		}
		what = opStats
	}
	if !tolerable(err) {
		x.fail("operation %d: %v", what, err)
	}
	return what
}

// copies reads or writes several pages at once.
func (x *torture) copies(k *kin, a Accessor, gva addr.GVA, n int, rng *rand.Rand) error {
	buf := make([]byte, n*int(page))
	if rng.IntN(2) == 0 {
		got, err := a.ReadAt(ctx, buf, gva)
		for off := 0; off+8 <= got; off += 8 {
			if w := leWord(buf[off:]); w != 0 {
				x.look(k, gva+addr.GVA(off), w)
			}
		}
		return err
	}
	for off := 0; off < len(buf); off += 512 {
		w := k.next()
		for i := range 8 {
			buf[off+i] = byte(w >> (8 * i))
		}
	}
	_, err := a.WriteAt(ctx, buf, gva)
	return err
}

func leWord(b []byte) (w uint64) {
	for i := range 8 {
		w |= uint64(b[i]) << (8 * i)
	}
	return w
}

func (x *torture) fork(k *kin) error {
	x.mu.Lock()
	full := len(x.family) >= 12
	x.mu.Unlock()
	if full {
		return nil
	}
	child, err := k.as.Fork()
	if err == nil {
		x.join(child, k)
	}
	return err
}

// pin holds pages and looks at their frames as a device would.
func (x *torture) pin(k *kin, gva addr.GVA, n int, rng *rand.Rand) error {
	p, err := k.as.Pin(ctx, addr.Range{Start: gva, End: gva + addr.GVA(n)*page}, []Access{Read, Write}[rng.IntN(2)])
	if err != nil {
		return err
	}
	defer p.Release()
	for i, f := range p.Frames() {
		x.look(k, gva+addr.GVA(i)*page, atomic.LoadUint64(x.m.arena.Word64(f, 0)))
		runtime.Gosched()
		// It is pinned: it is nobody else's, whatever was unmapped or forked.
		x.look(k, gva+addr.GVA(i)*page, atomic.LoadUint64(x.m.arena.Word64(f, 512)))
	}
	return nil
}

// sum increments a word that the whole family shares.
func (x *torture) sum(a Accessor) error {
	for {
		v, err := a.Load64(ctx, tortureSums)
		if err != nil {
			return err
		}
		ok, err := a.CompareAndSwap64(ctx, tortureSums, v, v+1)
		if ok {
			x.sums.Add(1)
		}
		if ok || err != nil {
			return err
		}
	}
}

// file reads the object, each byte of which is its page's number, or writes to
// its own copy.
func (x *torture) file(k *kin, a Accessor, rng *rand.Rand) error {
	i := rng.IntN(filePages)
	gva := tortureFile + addr.GVA(i)*page
	if rng.IntN(2) == 0 {
		return a.Store64(ctx, gva+8, k.next())
	}
	var b [1]byte
	_, err := a.ReadAt(ctx, b[:], gva+100)
	if err == nil && b[0] != byte(i) {
		x.fail("file page %d reads %d", i, b[0])
	}
	if w, err := a.Load64(ctx, gva+8); err == nil && w != uint64(i)*0x0101010101010101 {
		x.look(k, gva+8, w)
	}
	return err
}

// numberedPages is a source whose bytes are their page's number.
type numberedPages struct{}

func (numberedPages) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte((off + int64(i)) / int64(page))
	}
	return len(p), nil
}

func newTorture(t *testing.T, m *Memory) *torture {
	x := &torture{t: t, m: m}
	var err error
	x.object, err = m.NewFileObject(numberedPages{}, filePages*int64(page), "numbered")
	mustDo(t, err)
	as := newSpace(t, m)
	mapAt(t, as, tortureBase, tortureSlots*page, rw)
	mustMap(t, as, MapOptions{Addr: tortureSums, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustMap(t, as, MapOptions{Addr: tortureFile, Length: filePages * page, Prot: rw, Flags: MapPrivate | MapFixed, Object: x.object})
	as.SetBreak(tortureHeap)
	x.join(as, nil)
	return x
}

func (x *torture) run() {
	var wg sync.WaitGroup
	for i := range 6 * runtime.GOMAXPROCS(0) { // the reclaimer has 4 pooled slots a processor
		wg.Add(1)
		go func() {
			defer wg.Done()
			x.worker(rand.Uint64(), i%2 == 0)
		}()
	}
	// Quiescent points: hold every life, then all must be exact.
	deadline := time.Now().Add(soakFor())
	for time.Now().Before(deadline) && !x.done.Load() {
		time.Sleep(soakFor() / 20)
	}
	x.done.Store(true)
	wg.Wait()
	mustCheck(x.t, x.m)
	if len(x.family) > 0 {
		v, err := x.family[0].as.Load64(ctx, tortureSums)
		if err != nil || v != x.sums.Load() {
			x.t.Errorf("the shared word is %d (%v) after %d increments", v, err, x.sums.Load())
		}
	}
	for len(x.family) > 0 {
		x.leave(x.family[0])
		mustCheck(x.t, x.m)
	}
	x.object.Close()
	if testing.Verbose() {
		var n []uint64
		for i := range nOps {
			n = append(n, x.counts[i].Load())
		}
		x.t.Logf("operations %v, %d words looked at, %+v", n, x.checked.Load(), x.m.Stats())
	}
}

func TestR4NoByteOfAnotherSpaceIsEverRead(t *testing.T) {
	for _, mib := range []uint64{1, 16} { // the first runs out of memory all the time
		t.Run(fmt.Sprintf("MiB=%d", mib), func(t *testing.T) {
			newTorture(t, newMemory(t, mib<<20)).run()
		})
	}
}

func TestR8TortureWithAView(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	newTorture(t, m).run()
	m.domain.Synchronize()
	r.Flush()
	r.settle(t)
	if r.nStops == 0 {
		t.Error("nothing was ever stopped")
	}
}

// A fork is an instant: a writer that stores to p and then to q in the parent
// must not be seen by the child to have stored to q only.
func TestR1ForkIsAnInstant(t *testing.T) {
	for name, distance := range map[string]addr.GVA{"one table": page, "two tables": 4 << 20, "two directories": 4 << 30} {
		for _, owned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, owned %v", name, owned), func(t *testing.T) {
				forkInstant(t, distance, owned)
			})
		}
	}
}

func forkInstant(t *testing.T, distance addr.GVA, owned bool) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	const writers = 3
	p := mapAt(t, as, 0x40000000, writers*page, rw)
	q := mapAt(t, as, 0x40000000+writers*distance, writers*page, rw)
	if distance == page {
		q = p + writers*page
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range addr.GVA(writers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			a := as.borrow()
			if owned {
				a.giveBack()
				h := m.NewHandle()
				defer h.Close()
				a = as.With(h)
			} else {
				defer a.giveBack()
			}
			for n := uint64(1); !stop.Load(); n++ {
				if err := errors.Join(a.Store64(ctx, p+i*page, n), a.Store64(ctx, q+i*page, n)); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	defer wg.Wait()
	defer stop.Store(true)
	deadline := time.Now().Add(soakFor() / 6)
	forks := 0
	for ; time.Now().Before(deadline) || forks < 20; forks++ {
		child := mustFork(t, as)
		var first [writers][2]uint64
		for round := range 2 {
			for i := range addr.GVA(writers) {
				a, errA := child.Load64(ctx, p+i*page)
				b, errB := child.Load64(ctx, q+i*page)
				if errA != nil || errB != nil {
					t.Fatal(errA, errB)
				}
				if b > a || a > b+1 {
					t.Fatalf("fork %d: the child has p = %d and q = %d", forks, a, b)
				}
				if got := [2]uint64{a, b}; round == 0 {
					first[i] = got
				} else if got != first[i] {
					t.Fatalf("fork %d: the child changed from %v to %v", forks, first[i], got)
				}
			}
			runtime.Gosched()
		}
		mustDo(t, child.Close())
	}
}

// When a change that takes a permission away returns, no section is left in
// which that permission was found.
func TestR1NoPermissionShrinksInsideASection(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, rw)
	var returned atomic.Uint64 // changes that have returned; only one at a time
	var found atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h := m.NewHandle()
			defer h.Close()
			a := as.With(h)
			for n := 0; !stop.Load(); n++ {
				_ = a.Fault(ctx, gva+addr.GVA(n%4)*page, Write)
				a.h.Enter(as.id)
				f, ok := as.pt.Translate(gva+addr.GVA(n%4)*page, needFor(Write))
				before := returned.Load()
				if ok {
					found.Add(1)
					m.arena.Bytes(f)[8*i]++
					if n%16 == 0 {
						runtime.Gosched()
					}
				}
				after := returned.Load()
				a.h.Exit()
				if ok && before != after {
					t.Errorf("%d changes returned beside a section that had found a writable page", after-before)
					stop.Store(true)
				}
			}
		}()
	}
	deadline := time.Now().Add(soakFor() / 2)
	for n := 0; time.Now().Before(deadline) && !stop.Load(); n++ {
		switch n % 3 {
		case 0:
			mustDo(t, as.Protect(gva, 4*page, r_))
			returned.Add(1)
			mustDo(t, as.Protect(gva, 4*page, rw))
		case 1:
			mustDo(t, as.Unmap(gva, 4*page))
			returned.Add(1)
			mapAt(t, as, gva, 4*page, rw)
		case 2:
			mustDo(t, as.Protect(gva, 2*page, ProtNone))
			mustDo(t, as.Protect(gva+2*page, 2*page, ProtNone))
			returned.Add(1)
			mustDo(t, as.Protect(gva, 4*page, rw))
		}
		if n%8 == 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	stop.Store(true)
	wg.Wait()
	if found.Load() == 0 {
		t.Error("no section found a page")
	}
}
