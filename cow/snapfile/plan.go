package snapfile

import (
	"context"
	"fmt"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// batchBytes is how much one worker deals with at a time: enough for writes at
// the disk's rate, and little enough to stay in a processor's cache until it is
// summed up.
const batchBytes = 1 << 20

// batch is a piece of work. Batches are cut in the order of addresses, workers
// take them in that order, and each passes its turn on when its chunks are in the
// tables and its place in the file is known: so files have the order of
// memory, while reading, looking for zeroes, summing up, encoding and writing
// overlap.
//
//	plan:    cut ─► cut ─► cut ─► …
//	worker:         read, sum, encode ─► turn ─► write
//	worker:                read, sum, encode ─►  turn ─► write
type batch struct {
	region int
	runs   []span
	pages  uint64
	passed uint64          // bytes of guest memory up to its end, for Progress
	turn   <-chan struct{} // closed when the batch before has had its turn
	done   chan struct{}   // closed when this one has
}

// data writes all data.
func (w *writer) data(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *batch)
	var workers sync.WaitGroup
	for range w.workers {
		workers.Go(func() {
			e := newEncoder(w)
			for b := range work {
				if err := e.batch(ctx, b); err != nil {
					cancel(err) // the first one counts
				}
			}
		})
	}
	p := &planner{w: w, ctx: ctx, work: work, most: max(batchBytes, uint64(w.h.chunkSize)) / addr.PageSize}
	if err := p.plan(); err != nil {
		cancel(err)
	}
	close(work)
	workers.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if w.progress != nil {
		w.progress(w.h.guestBytes, w.h.guestBytes)
	}
	return nil
}

// planner cuts batches.
type planner struct {
	w      *writer
	ctx    context.Context
	work   chan<- *batch
	most   uint64 // pages in a batch
	next   *batch // that is being filled; nil: none
	last   <-chan struct{}
	passed uint64 // bytes of the regions before
}

func (p *planner) plan() error {
	first := make(chan struct{})
	close(first)
	p.last = first
	for i := range p.w.regions {
		if err := p.region(i); err != nil {
			return err
		}
		p.passed += p.w.regions[i].Size
	}
	return nil
}

func (p *planner) region(i int) error {
	r := &p.w.regions[i]
	var broken error
	end := uint64(0)
	err := p.w.img.Data(r.Base, func(start addr.GPA, nPages uint64) bool {
		off := uint64(start - r.Base)
		if start < r.Base || off%addr.PageSize != 0 || off/addr.PageSize < end || off > r.Size || nPages > (r.Size-off)/addr.PageSize {
			broken = imagef("a run of %d pages at %v, behind page %d of %v", nPages, start, end, r.Region)
			return false
		}
		s := span{off / addr.PageSize, nPages}
		end = s.end()
		return p.add(i, s)
	})
	switch {
	case broken != nil:
		return broken
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case err != nil:
		return fmt.Errorf("%w: which pages %v has: %w", ErrImage, r.Region, err)
	}
	p.flush()
	return nil
}

// add adds a run to the batches of a region, and returns false if nobody wants
// any more. Batches end where chunks of memory end, if they are aligned, so
// that a page-wise reader of aligned chunks finds each in one chunk.
func (p *planner) add(region int, s span) bool {
	for s.n > 0 {
		if p.next == nil {
			p.next = &batch{region: region, turn: p.last, done: make(chan struct{})}
			p.last = p.next.done
		}
		b := p.next
		n := min(s.n, p.most-b.pages)
		if cut := s.first%p.most + n; n == p.most-b.pages && cut > p.most {
			n -= cut - p.most
		}
		b.runs = append(b.runs, span{s.first, n})
		b.pages += n
		s.first, s.n = s.first+n, s.n-n
		b.passed = p.passed + s.first*addr.PageSize
		if (s.n > 0 || b.pages == p.most) && !p.flush() {
			return false
		}
	}
	return p.ctx.Err() == nil
}

// flush gives the batch away.
func (p *planner) flush() bool {
	if p.next == nil {
		return true
	}
	select {
	case p.work <- p.next:
		p.next = nil
		return true
	case <-p.ctx.Done():
		return false
	}
}
