package guestmem

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

// What R1 promises to a section that has walked to a page, exactly: the entry may
// be swept under its eyes, but the change that swept it does not return before
// the section has ended. So a section that has found a permission never sees a
// change that leaves the page without it return, from then to its end.
//
// Were it to begin after the change has swept, it would not find the permission,
// and no other change may give it back before the count below says that the
// change has returned: hence one lock around both.

// slots keeps account of what changes have done to the slots of a space.
type slots struct {
	mu      sync.Mutex // around a change of what slots allow, and its counting
	write   [tortureSlots]atomic.Uint64
	all     [tortureSlots]atomic.Uint64
	emptied [tortureSlots]emptied
}

// reset runs what empties slots, or overwrites them.
func (l *slots) reset(slot, n int, op func() error) error {
	for i := slot; i < slot+n; i++ {
		l.emptied[i].underWay.Add(1)
		l.emptied[i].times.Add(1)
	}
	err := op()
	for i := slot; i < slot+n; i++ {
		l.emptied[i].underWay.Add(-1)
	}
	return err
}

// emptied counts what has been done to a slot that empties it.
type emptied struct {
	times    atomic.Uint64
	underWay atomic.Int64
}

// since returns what a store that begins now can be held against: if it is the
// same after a later load, then nothing has emptied the slot from now to then.
// It returns false while something may be emptying it.
func (e *emptied) since() (times uint64, ok bool) {
	times = e.times.Load()
	return times, e.underWay.Load() == 0
}

func (l *slots) replace(as *AddressSpace, slot, n int, prot Prot, op func() error) error {
	return l.reset(slot, n, func() error { return l.shrink(as, slot, n, permOf(prot), op) })
}

func (l *slots) unmap(as *AddressSpace, slot, n int) error {
	return l.reset(slot, n, func() error {
		return l.shrink(as, slot, n, 0, func() error { return as.Unmap(slotAt(slot), uint64(n)*page) })
	})
}

func (l *slots) protect(as *AddressSpace, slot, n int, prot Prot) error {
	return l.shrink(as, slot, n, permOf(prot), func() error { return as.Protect(slotAt(slot), uint64(n)*page, prot) })
}

// away moves n slots elsewhere and back. No store gets lost in that: while they are
// away nobody can store there, so that they come back as they went, and are not
// counted as emptied. What a parent had there when it forked goes first.
func (l *slots) away(as *AddressSpace, slot, n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	here, length := slotAt(slot), uint64(n)*page
	if err := as.Unmap(tortureAway, tortureSlots*page); err != nil {
		return err
	}
	o := RemapOptions{Addr: here, OldLength: length, NewLength: length, Flags: RemapMayMove | RemapFixed, NewAddr: tortureAway}
	if _, err := as.Remap(ctx, o); err != nil {
		for i := slot; i < slot+n; i++ { // some of it may be away
			l.emptied[i].times.Add(1)
		}
		return err
	}
	for i := slot; i < slot+n; i++ {
		if e := as.leafEntry(slotAt(i)); e != 0 {
			return fmt.Errorf("slot %d has entry %#x after it was moved away", i, uint64(e))
		}
		l.write[i].Add(1)
		l.all[i].Add(1)
	}
	o.Addr, o.NewAddr = o.NewAddr, o.Addr
	_, err := as.Remap(ctx, o)
	if err != nil {
		for i := slot; i < slot+n; i++ {
			l.emptied[i].times.Add(1)
		}
	}
	return err
}

// shrink runs a change that leaves n slots with perm, and nothing where that is
// 0. What it took is gone when it returns: no entry has it, nor gets it again
// before another change gives it.
func (l *slots) shrink(as *AddressSpace, slot, n int, perm pagetable.Entry, change func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := change(); err != nil {
		return err // whatever it has done, it is promised nothing of
	}
	for range 2 {
		for i := slot; i < slot+n; i++ {
			if e := as.leafEntry(slotAt(i)); e.Has(pagetable.Present) && (perm == 0 || beyond(e, perm)) {
				return fmt.Errorf("slot %d has entry %#x after a change that has left it %#x", i, uint64(e), uint64(perm))
			}
		}
		runtime.Gosched()
	}
	for i := slot; i < slot+n; i++ {
		if !perm.Has(pagetable.Writable) {
			l.write[i].Add(1)
		}
		if !perm.Has(pagetable.User) {
			l.all[i].Add(1)
		}
	}
	return nil
}

// beyond reports whether an entry allows what perm does not.
func beyond(e, perm pagetable.Entry) bool {
	return e&^perm&(pagetable.Writable|pagetable.User) != 0 || perm.Has(pagetable.NoExec) && !e.Has(pagetable.NoExec)
}

// path is the frames that a walk to gva comes through, and their stamps.
type path struct {
	frames [5]addr.PFN
	stamps [5]cow.Stamp
}

func (x *torture) walk(as *AddressSpace, gva addr.GVA) (p path) {
	f := as.Root()
	for level := range p.frames {
		p.frames[level], p.stamps[level] = f, x.m.pool.Stamp(f)
		if level < 4 {
			e := pagetable.Entry(x.m.arena.Load(f, uint64(gva)>>(39-9*level)&511))
			if !e.Has(pagetable.Present) || !x.m.arena.Contains(e.Frame()) {
				break
			}
			if f = e.Frame(); level == 2 && e.Has(pagetable.Huge) {
				f += addr.PFN(uint64(gva) >> addr.PageShift & 511)
				p.frames[level+1], p.stamps[level+1] = f, x.m.pool.Stamp(f)
				break
			}
		}
	}
	return p
}

// mustHold fails if something on the path was reclaimed.
func (x *torture) mustHold(p path) {
	for level, f := range p.frames {
		if f != 0 {
			x.m.pool.MustHold(f, p.stamps[level])
		}
	}
}

// section is one read section by hand: it walks to a slot, dawdles, and uses what
// it has found.
func (x *torture) section(k *kin, a Accessor, w *hand, slot int) {
	as, m := k.as, x.m
	gva := slotAt(slot) + w.anyWord()
	need, returned := needFor(Read), &k.layout.all[slot]
	own, isOwner := w.ownWord()
	if w.rng.IntN(2) == 0 && isOwner {
		gva, need, returned = slotAt(slot)+own, needFor(Write), &k.layout.write[slot]
	}
	a.h.Enter(as.id)
	f, ok := addr.PFN(0), m.door.passes()
	if ok {
		f, ok = as.pt.Translate(gva, need)
	}
	if !ok {
		a.h.Exit()
		return
	}
	before := returned.Load()
	emptied, quiet := k.layout.emptied[slot].since()
	stamp, path := m.pool.Stamp(f), x.walk(as, gva)
	word := m.arena.Word64(f, gva.PageOffset())
	first := atomic.LoadUint64(word)
	leaf, dawdles := as.pt.Find(gva), w.rng.IntN(30)
	for i := 0; i < dawdles; i++ {
		runtime.Gosched()
		if !leaf.Huge && leaf.Reload().Frame() != f {
			// Swept, or copied: from now to the end of the section, what was
			// here may not be touched by anybody else. See who does.
			dawdles = 100
		}
	}
	if invariants.Enabled {
		invariants.MayYield()
	}
	if need.Has(pagetable.Writable) {
		next := k.next()
		atomic.StoreUint64(word, next)
		w.remember(k, slot, written{next, emptied, quiet})
	}
	// By now, whoever else has come to own the frame may have written to it.
	var words [16]uint64
	for i := range words {
		words[i] = atomic.LoadUint64(m.arena.Word64(f, uint64(ownWordOf(i))))
	}
	m.pool.MustHold(f, stamp)
	x.mustHold(path)
	after := returned.Load()
	a.h.Exit()
	x.look(k, gva, first)
	for i, word := range words {
		x.look(k, slotAt(slot)+ownWordOf(i), word)
	}
	if before != after {
		x.fail("space %d: %d changes returned beside a section that had found slot %d to allow %#x", k.id, after-before, slot, uint64(need))
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
	// Where others need the processors too, it takes longer until a section has begun.
	deadline, limit := time.Now().Add(soakFor()/2), time.Now().Add(time.Minute)
	for n := 0; !stop.Load() && (time.Now().Before(deadline) || found.Load() == 0 && time.Now().Before(limit)); n++ {
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
