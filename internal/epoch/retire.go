package epoch

import (
	"github.com/guestmm/guestmm/internal/variant"
	"runtime"
)

// Flush closes the slot's batch and reclaims what has become reclaimable.
// It waits for nobody.
//
// Preconditions: the slot is held and in no section.
func (h *Handle) Flush() {
	AssertOutside("Flush")
	s := h.slot
	if s.n > 0 {
		h.domain.closeBatch(s)
	}
	h.domain.Poll()
}

// closeBatch turns a slot's items into a pending batch. Every item was made
// unreachable before it was retired, hence before the slots are read here: a
// section that can reach one is among those recorded, whatever space it is of.
func (d *Domain) closeBatch(s *slot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b *batch
	if n := len(d.batches); n > 0 {
		b, d.batches = d.batches[n-1], d.batches[:n-1]
	} else {
		b = new(batch)
	}
	b.items = append(b.items[:0], s.retired[:s.n]...)
	s.n = 0
	b.open = b.open[:0]
	for _, sl := range *d.slots.Load() {
		if w := sl.word.Load(); isSection(w) && !variant.ReclaimAtOnce {
			b.open = append(b.open, openSection{sl, w})
		}
	}
	d.pending = append(d.pending, b)
	d.nPending.Add(int64(len(b.items)))
}

// settled drops the sections that have ended from the list and reports whether
// none is left.
func (b *batch) settled() bool {
	for n := len(b.open); n > 0; n = len(b.open) {
		if o := b.open[n-1]; o.slot.word.Load() == o.word {
			return false
		}
		b.open = b.open[:n-1]
	}
	return true
}

// Poll reclaims what nobody can reach any more, without waiting.
func (d *Domain) Poll() {
	AssertOutside("Poll")
	for d.nPending.Load() > 0 {
		b := d.takeSettled()
		if b == nil {
			return
		}
		d.reclaim(b.items)
		d.mu.Lock()
		d.nPending.Add(-int64(len(b.items)))
		d.batches = append(d.batches, b)
		d.mu.Unlock()
	}
}

// takeSettled removes a batch that may be reclaimed.
func (d *Domain) takeSettled() *batch {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, b := range d.pending {
		if b.settled() {
			d.pending = append(d.pending[:i], d.pending[i+1:]...)
			return b
		}
	}
	return nil
}

// FlushAll closes the batch of every slot that is free at the moment and
// reclaims what it can. It waits for nobody.
func (d *Domain) FlushAll() {
	AssertOutside("FlushAll")
	for _, s := range *d.slots.Load() {
		if s.word.CompareAndSwap(wordFree, wordHeld) {
			if s.n > 0 {
				d.closeBatch(s)
			}
			s.word.Store(wordFree)
		}
	}
	d.Poll()
}

// Synchronize reclaims what had been retired when it was called, but for what is
// in slots that are held meanwhile. It waits for all sections, so it is for closing, for checks, and for when memory is short,
// not for paths that free. Beside callers that go on retiring it gives up after
// a number of rounds.
func (d *Domain) Synchronize() {
	const rounds = 100
	for range rounds {
		d.FlushAll()
		d.BarrierAll()
		d.Poll()
		if d.nPending.Load() == 0 {
			return
		}
		runtime.Gosched()
	}
}

// Pending returns the number of items in closed batches.
func (d *Domain) Pending() int { return int(d.nPending.Load()) }
