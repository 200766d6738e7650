package epoch

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// Domain is a set of slots and what waits to be reclaimed.
type Domain struct {
	slots  atomic.Pointer[[]*slot] // all of them; replaced whole under mu, read by anyone
	pooled []*slot                 // the first of slots; immutable
	next   atomic.Uint32           // spreads pooled handles over the slots
	pool   sync.Pool               // of *Handle; dropping one loses nothing

	newLocal func() any
	reclaim  func([]Item)

	mu       sync.Mutex
	idle     []*slot  // owned slots whose handles were closed; mu
	pending  []*batch // oldest first; mu
	batches  []*batch // for reuse; mu
	nPending atomic.Int64
}

// batch is a closed batch and the sections that were open when it was closed.
type batch struct {
	items []Item
	open  []openSection
}

type openSection struct {
	slot *slot
	word uint64
}

// New returns a domain. reclaim is called with items that no section can reach
// any more, outside of sections and without locks of this package, by whoever
// happens to notice. newLocal makes the caller's state for each slot.
func New(newLocal func() any, reclaim func([]Item)) *Domain {
	d := &Domain{newLocal: newLocal, reclaim: reclaim}
	n := 4 * runtime.GOMAXPROCS(0)
	backing := make([]slot, n)
	for i := range backing {
		backing[i].local = newLocal()
		d.pooled = append(d.pooled, &backing[i])
	}
	all := append([]*slot(nil), d.pooled...)
	d.slots.Store(&all)
	d.pool.New = func() any { return &Handle{domain: d, slot: d.nextPooled()} }
	return d
}

// nextPooled picks a pooled slot; round robin, which is only walked when a
// handle is new or has met another one on its slot.
func (d *Domain) nextPooled() *slot {
	return d.pooled[int(d.next.Add(1))%len(d.pooled)]
}

// yieldWhenCrowded lets preempted sections finish once every slot was tried.
func (d *Domain) yieldWhenCrowded() {
	if int(d.next.Load())%len(d.pooled) == 0 {
		runtime.Gosched()
	}
}

// Acquire lends a handle and begins a section of s with it.
func (d *Domain) Acquire(s Space) *Handle {
	h := d.pool.Get().(*Handle)
	h.Enter(s)
	return h
}

// Release ends the section and takes the handle back.
func (d *Domain) Release(h *Handle) {
	h.Exit()
	d.pool.Put(h)
}

// Borrow lends a handle whose slot is neither held nor in a section.
func (d *Domain) Borrow() *Handle { return d.pool.Get().(*Handle) }

// GiveBack takes back a handle whose slot is free.
func (d *Domain) GiveBack(h *Handle) { d.pool.Put(h) }

// NewHandle returns a handle with a slot of its own.
func (d *Domain) NewHandle() *Handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.idle); n > 0 {
		s := d.idle[n-1]
		d.idle = d.idle[:n-1]
		return &Handle{domain: d, slot: s, owned: true}
	}
	s := &slot{local: d.newLocal()}
	all := append(append([]*slot(nil), *d.slots.Load()...), s)
	d.slots.Store(&all)
	return &Handle{domain: d, slot: s, owned: true}
}

// Close gives an owned handle's slot back. Closing twice does nothing.
//
// Preconditions: the handle is in no section.
func (h *Handle) Close() {
	d := h.domain
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.slot == nil {
		return
	}
	d.idle = append(d.idle, h.slot)
	h.slot = nil
}

// Domain returns the domain that the handle belongs to.
func (h *Handle) Domain() *Domain { return h.domain }

// Drain calls fn with the local state of every slot that is free at the
// moment, holding the slot meanwhile.
func (d *Domain) Drain(fn func(local any)) {
	for _, s := range *d.slots.Load() {
		if s.word.CompareAndSwap(wordFree, wordHeld) {
			fn(s.local)
			s.word.Store(wordFree)
		}
	}
}

// EachLocal calls fn with the local state of every slot, held or not. fn may
// only touch what its type lets anyone touch (statistics).
func (d *Domain) EachLocal(fn func(local any)) {
	for _, s := range *d.slots.Load() {
		fn(s.local)
	}
}
