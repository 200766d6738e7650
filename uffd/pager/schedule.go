package pager

import "time"

// enqueue gives a fault to the workers.
func (s *Server) enqueue(g *Guest, j job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.left {
		return
	}
	g.queue.push(j)
	if !g.inReady {
		g.inReady = true
		s.ready.push(g)
	}
	s.more.Signal()
}

// next waits for a job. Guests take turns, a fault at a time. A guest's first
// job in hand takes the worker that came with it; each further one needs one of
// Options.Workers. So whatever the others do, however slow their sources are,
// a guest always has a worker, and what is left is shared by turns.
func (s *Server) next() (*Guest, job, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.surplus > 0 {
			s.surplus--
			return nil, job{}, false
		}
		if g, j, ok := s.nextFault(); ok {
			return g, j, true
		}
		if g, ok := s.nextFill(); ok {
			return g, job{kind: jobFill}, true
		}
		s.more.Wait()
	}
}

// nextFault takes the next fault that may have a worker. s.mu is held.
func (s *Server) nextFault() (*Guest, job, bool) {
	for range s.ready.n {
		g := s.ready.pop()
		if g.left || g.queue.n == 0 {
			g.inReady = false
			continue
		}
		if g.inflight > 0 && s.shared >= s.o.Workers {
			s.ready.push(g)
			continue
		}
		j := g.queue.pop()
		if g.inReady = g.queue.n > 0; g.inReady {
			s.ready.push(g)
		}
		if g.inflight++; g.inflight > 1 {
			s.shared++
		}
		return g, j, true
	}
	return nil, job{}, false
}

// nextFill takes a guest whose filler may go on: never while a fault waits.
// s.mu is held.
func (s *Server) nextFill() (*Guest, bool) {
	if s.ready.n > 0 || s.shared >= s.o.Workers || s.filling >= max(1, s.o.Workers/2) {
		return nil, false
	}
	for range s.fillers.n {
		g := s.fillers.pop()
		if g.left || !g.fill.wanted() {
			g.inFillers = false
			continue
		}
		s.fillers.push(g)
		if g.filling >= g.o.Fill.Parallel {
			continue
		}
		g.filling++
		s.filling++
		s.shared++
		return g, true
	}
	return nil, false
}

// fillAgain has a guest's filler asked for runs.
func (s *Server) fillAgain(g *Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.left || g.inFillers || !g.fill.wanted() {
		return
	}
	g.inFillers = true
	s.fillers.push(g)
	s.more.Broadcast()
}

// Whether the guest of a job was still there at its end.
type stay bool

const (
	guestStays stay = true
	guestLeft  stay = false // and the worker has been replaced
)

// finished puts the worker's place back.
func (s *Server) finished(g *Guest, kind jobKind) stay {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.left {
		return guestLeft
	}
	if kind == jobFill {
		g.filling--
		s.filling--
		s.shared--
	} else {
		if g.inflight > 1 {
			s.shared--
		}
		g.inflight--
	}
	// This worker looks for work next. Another may be able to do what could
	// not have a worker until now.
	s.more.Signal()
	return guestStays
}

// takeFollowing takes the faults on the pages after j's out of the queue if
// they are next in it, and appends when they were read to since, which has j's.
func (s *Server) takeFollowing(g *Guest, j job, limit int, since []time.Time) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(since) < limit && g.queue.n > 0 {
		next := g.queue.peek()
		if next.kind != jobRead || next.r != j.r || next.i != j.i+len(since) {
			break
		}
		g.queue.pop()
		since = append(since, next.since)
	}
	return since
}
