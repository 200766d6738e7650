package guestmem

import (
	"context"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// Sweep copies what nobody has written yet, and returns when the snapshot is
// complete: every page is in the layer, or known to be zero, and the memory is not
// needed any more. A sweep in the background goes on meanwhile.
//
// Errors: what the snapshot has failed with; ErrClosed; ctx's, and it can be called
// again.
func (s *Snapshot) Sweep(ctx context.Context) error {
	if err := s.begin(); err != nil {
		return opError("sweep", addr.Range{}, err)
	}
	defer s.end()
	if err := s.sweep(ctx); err != nil {
		return opError("sweep", addr.Range{}, err)
	}
	return nil
}

// sweepInBackground begins a sweep that ends with the snapshot.
func (s *Snapshot) sweepInBackground() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds == 0 {
		return
	}
	s.users.Go(func() {
		_ = s.sweep(s.ctx) // Err has it
	})
}

// sweep is Sweep, for who keeps the layers from going.
func (s *Snapshot) sweep(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for _, l := range s.layers {
		if err := l.sweep(ctx); err != nil {
			select {
			case <-s.done:
				return s.Err()
			default:
			}
			if ctx.Err() == nil {
				s.failIf(err)
			} else if s.ctx.Err() != nil {
				err = errSnapshotClosed
			}
			return err
		}
	}
	<-s.done // somebody else may be putting the last page
	return s.Err()
}

// sweep fills the layer: first what can be told to be zero without a look at it,
// then what may hold something.
func (l *layer) sweep(ctx context.Context) error {
	if l.left.Load() == 0 {
		return nil
	}
	held, err := l.mayHold()
	if err != nil {
		if l.left.Load() == 0 {
			return nil // somebody else has copied the rest, and the region may have gone
		}
		return err
	}
	if held != nil {
		l.markZero(held)
	}
	for word := range l.has {
		first := uint64(word) * 64
		lacks := l.has.all(uint64(word), l.nPages) &^ l.has[word].Load()
		if lacks == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.fill(ctx, first, min(64, l.nPages-first)); err != nil {
			return err
		}
	}
	return nil
}

// mayHold finds the pages of the region that may hold something else than zero
// now; nil: any of them.
func (l *layer) mayHold() (*pageSet, error) {
	r := l.region
	if r.server.Load() != nil || r.lazy.Load() != nil {
		return nil, nil // what is not there yet is somewhere else
	}
	held, err := r.heldPages()
	if why := l.s.Err(); why != nil {
		return nil, why // and the region may have gone while it was looked at: see fillConstant
	}
	if err != nil {
		return nil, fmt.Errorf("look for pages of the region %v: %w", r, err)
	}
	return held, nil
}

// fill has the layer get the pages [first, first+n), each of which is copied, or
// was, to every snapshot that lacks it, and left armed.
func (l *layer) fill(ctx context.Context, first, n uint64) error {
	if l.has.hasAll(first, n) {
		return nil
	}
	if err := l.region.fetchAll(ctx, first, n); err != nil {
		if l.has.hasAll(first, n) {
			return nil // as above
		}
		if why := l.s.Err(); why != nil {
			return why
		}
		return fmt.Errorf("fetch pages of the region %v: %w", l.region, err)
	}
	if l.arms == nil {
		return l.fillConstant(first, n)
	}
	for word, mask := range l.arms.within(first, n) {
		if err := l.fillWord(ctx, word, mask); err != nil {
			return err
		}
	}
	return nil
}

// fillWord is fill for units of one word.
func (l *layer) fillWord(ctx context.Context, word uint64, mask uint32) error {
	a, m := l.arms, l.s.mem
	for try := 0; ; try++ {
		lacks := l.lacking(word, mask)
		if lacks == 0 {
			return nil
		}
		if err := l.s.Err(); err != nil {
			return err
		}
		if a.unit > 1 {
			lacks &= -lacks // huge: one at a time, or who writes waits for many
		}
		m.snaps.gate.RLock()
		got := a.claim(word, lacks)
		a.eachUnitRun(word, got, func(first, n uint64) {
			m.save(l.region, first, n)
			afterSave(l.region, first)
		})
		a.unclaim(word, got)
		unarmed := lacks &^ got &^ a.armed(word)
		m.snaps.gate.RUnlock()
		if err := l.checkUnarmed(word, unarmed); err != nil {
			return err
		}
		if got != 0 {
			try = 0
			continue
		}
		if err := backOff(ctx, try); err != nil {
			return err
		}
	}
}

// checkUnarmed ends the snapshot if it lacks units that are not armed: whoever has
// disarmed one has copied it before, and nobody arms one while the gate is held, so
// nothing leads to this but a broken rule, and nobody will mend it. A later window
// would arm the unit again, with what was stored since.
//
// Preconditions: the gate was held when they were found not to be armed.
func (l *layer) checkUnarmed(word uint64, units uint32) error {
	lost := l.lacking(word, units)
	if lost == 0 {
		return nil
	}
	if err := l.s.Err(); err != nil {
		return err // it was disarmed since, and not copied any more
	}
	err := fmt.Errorf("units %#x of word %#x of the region %v are neither armed nor copied: %w", lost, word, l.region, ErrBus)
	if invariants.Enabled {
		panic("guestmem: " + err.Error())
	}
	l.s.failIf(err)
	return err
}

// lacking returns those of the units wanted of which the layer lacks a page.
func (l *layer) lacking(word uint64, wanted uint32) (lacks uint32) {
	unit := l.arms.unit
	for m := wanted; m != 0; m &= m - 1 {
		bit := m & -m
		l.arms.eachUnitRun(word, bit, func(first, _ uint64) {
			if !l.has.hasAll(first, unit) {
				lacks |= bit
			}
		})
	}
	return lacks
}

// fillConstant is fill for a region to which nobody can store.
//
// Without a claim, and so without the gate, it is what is asked afterwards that makes
// it right. While a snapshot has not ended, and lacks a page, its region stays; once it
// has failed, the region may go, and what is at its address be another guest's:
//
//	fillConstant                another                     embedder
//	                            the snapshot fails
//	                                                        RemoveRegion; maps another
//	reads at its address
//	asks: it has failed
func (l *layer) fillConstant(first, n uint64) error {
	l.putting.Lock()
	defer l.putting.Unlock()
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	for n > 0 {
		k := min(n, pieceBytes/addr.PageSize)
		b := (*buf)[:k*addr.PageSize]
		err := l.region.readHost(first, b)
		if why := l.s.Err(); why != nil {
			return why
		}
		if err != nil {
			if l.has.hasAll(first, n) {
				return nil // as in fill
			}
			return fmt.Errorf("read the region %v: %w", l.region, err)
		}
		if err := l.put(first, b); err != nil {
			return err
		}
		first, n = first+k, n-k
	}
	return nil
}

// failIf ends the snapshot with an error, if there is one.
func (s *Snapshot) failIf(err error) {
	if err != nil && !errors.Is(err, errSnapshotClosed) {
		s.finish(fmt.Errorf("guestmem: the snapshot has failed: %w", err))
	}
}

// finish ends the time in which the snapshot needs its parent: complete, closed or
// failed. The first call counts.
func (s *Snapshot) finish(why error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended, s.err = true, why
	s.needs.Store(false)
	s.mem.snaps.remove(s)
	close(s.done)
	after := why == nil && s.o.After == DisarmSwept && s.holds > 0
	if after {
		s.users.Go(s.disarmIfSwept)
	}
	s.mu.Unlock()
}

// disarmIfSwept disarms the parent if nobody wants it armed.
func (s *Snapshot) disarmIfSwept() {
	s.mem.unkeep(s)
}
