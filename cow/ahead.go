package cow

// Growing ahead: with Options.Ahead, who takes frames and leaves few has a
// goroutine populate the next batch, so that the one after it does not wait for
// the host (4 µs a page on a nested one) unless it is faster than that.
//
// The frames of a batch under way count as unpopulated ones.

// takeAheadLocked takes the batch that is to be populated ahead, if one is.
func (p *Pool) takeAheadLocked() (run, bool) {
	if !p.opts.Ahead || p.ahead != 0 || p.populatedLocked() >= p.opts.GrowFrames {
		return run{}, false
	}
	r, ok := p.takeRunLocked()
	if ok {
		p.ahead = r.n
	}
	return r, ok
}

// growAhead populates a batch. That the host has no memory for it is found out
// again by whoever needs it.
func (p *Pool) growAhead(r run) {
	_ = p.populate(r)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead = 0
	p.back.Broadcast()
}

// WaitAhead waits until no batch is being populated ahead. None begins while
// nobody takes frames.
func (p *Pool) WaitAhead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ahead != 0 {
		p.back.Wait()
	}
}
