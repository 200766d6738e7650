package plain

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

var (
	errFault  = errors.New("plain: not mapped, or not allowed")
	errLength = errors.New("plain: a length that is no whole number of pages")
)

// Subject makes spaces of one kind.
type Subject struct{ newAreas func() areas }

// NewBTree returns the manager with a tree of areas.
func NewBTree() *Subject { return &Subject{newTreeAreas} }

// NewPageMap returns the manager with nothing but a map of pages.
func NewPageMap() *Subject { return &Subject{newMapAreas} }

// NewSpace returns an empty space.
func (s *Subject) NewSpace() (workload.Space, error) {
	return &space{areas: s.newAreas(), pages: make(map[uint64]*page), next: 1 << 32}, nil
}

// Settle has nothing to wait for: there is no background work.
func (*Subject) Settle() {}

// Close has nothing to close.
func (*Subject) Close() error { return nil }

// A page is the content of one page, which nobody writes to while it is shared.
type page struct {
	sharers atomic.Int32 // one less than the spaces that have it
	data    [workload.PageSize]byte
}

type space struct {
	mu    sync.RWMutex
	areas areas            // guarded by mu
	pages map[uint64]*page // by number; guarded by mu, and so is their data
	next  uint64           // the lowest address never handed out; guarded by mu
}

func (s *space) Map(length uint64, prot workload.Prot) (uint64, error) {
	if length == 0 || length%workload.PageSize != 0 {
		return 0, errLength
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.next
	if err := s.areas.set(at, at+length, prot); err != nil {
		return 0, err
	}
	s.next += length + workload.PageSize // and a hole
	return at, nil
}

func (s *space) MapAt(at, length uint64, prot workload.Prot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(at, length)
	return s.areas.set(at, at+length, prot)
}

func (s *space) Unmap(at, length uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.areas.clear(at, at+length)
	s.drop(at, length)
	if at+length+workload.PageSize == s.next {
		s.next = at // so that a loop of map and unmap stays where it is
	}
	return nil
}

func (s *space) Protect(at, length uint64, prot workload.Prot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.areas.covers(at, at+length) {
		return errFault
	}
	return s.areas.set(at, at+length, prot)
}

func (s *space) Discard(at, length uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(at, length)
	return nil
}

// drop forgets pages; s.mu is held for writing.
func (s *space) drop(at, length uint64) {
	first, end := at/workload.PageSize, (at+length)/workload.PageSize
	if end-first > uint64(len(s.pages)) {
		for n, p := range s.pages {
			if n >= first && n < end {
				p.sharers.Add(-1)
				delete(s.pages, n)
			}
		}
		return
	}
	for n := first; n < end; n++ {
		if p, ok := s.pages[n]; ok {
			p.sharers.Add(-1)
			delete(s.pages, n)
		}
	}
}

func (s *space) Fault(at uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.own(at)
	return err
}

// own returns the page at an address, for writing; s.mu is held for writing.
func (s *space) own(at uint64) (*page, error) {
	if prot, ok := s.areas.at(at); !ok || prot&workload.Write == 0 {
		return nil, errFault
	}
	n := at / workload.PageSize
	p, ok := s.pages[n]
	switch {
	case !ok:
		p = new(page)
		s.pages[n] = p
	case p.sharers.Load() > 0:
		// Whoever shares it may let go meanwhile: then the copy was not needed,
		// and the page is garbage.
		own := &page{data: p.data}
		p.sharers.Add(-1)
		p = own
		s.pages[n] = p
	}
	return p, nil
}

func (s *space) Fork() (workload.Space, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pages {
		p.sharers.Add(1)
	}
	return &space{areas: s.areas.clone(), pages: maps.Clone(s.pages), next: s.next}, nil
}

func (s *space) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pages {
		p.sharers.Add(-1)
	}
	s.pages = nil
	return nil
}

// NewCopier ignores the kind: nothing is kept per reader.
func (s *space) NewCopier(workload.CopierKind) (workload.Copier, error) { return copier{s}, nil }

type copier struct{ s *space }

// Roots is the space.
func (c copier) Roots() []any { return []any{c.s} }

func (c copier) ReadEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if err := c.s.read(at, p); err != nil {
			return err
		}
	}
	return nil
}

func (c copier) WriteEach(addrs []uint64, p []byte) error {
	for _, at := range addrs {
		if err := c.s.write(at, p); err != nil {
			return err
		}
	}
	return nil
}

func (copier) Close() error { return nil }

func (s *space) read(at uint64, p []byte) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for len(p) > 0 {
		if prot, ok := s.areas.at(at); !ok || prot&workload.Read == 0 {
			return errFault
		}
		off := at % workload.PageSize
		n := min(len(p), int(workload.PageSize-off))
		if from, ok := s.pages[at/workload.PageSize]; ok {
			copy(p[:n], from.data[off:])
		} else {
			clear(p[:n])
		}
		p, at = p[n:], at+uint64(n)
	}
	return nil
}

func (s *space) write(at uint64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(p) > 0 {
		to, err := s.own(at)
		if err != nil {
			return err
		}
		n := copy(to.data[at%workload.PageSize:], p)
		p, at = p[n:], at+uint64(n)
	}
	return nil
}
