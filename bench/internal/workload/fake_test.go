package workload

import (
	"errors"
	"sync"
	"sync/atomic"
)

// fake is a subject that hands out addresses and remembers nothing else but
// how many spaces and copiers are open.
type fake struct{ open atomic.Int64 }

func (f *fake) NewSpace() (Space, error) {
	f.open.Add(1)
	return &fakeSpace{sub: f, next: PageSize}, nil
}
func (*fake) Settle()      {}
func (*fake) Close() error { return nil }

type fakeSpace struct {
	sub  *fake
	mu   sync.Mutex
	next uint64 // guarded by mu
}

func (s *fakeSpace) Map(length uint64, _ Prot) (uint64, error) {
	if length == 0 || length%PageSize != 0 {
		return 0, errors.New("bad length")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.next
	s.next += length
	return at, nil
}
func (*fakeSpace) MapAt(_, _ uint64, _ Prot) error   { return nil }
func (*fakeSpace) TableBytes() uint64                { return 0 }
func (*fakeSpace) Unmap(_, _ uint64) error           { return nil }
func (*fakeSpace) Protect(_, _ uint64, _ Prot) error { return nil }
func (*fakeSpace) Discard(_, _ uint64) error         { return nil }
func (*fakeSpace) Fault(uint64) error                { return nil }
func (s *fakeSpace) Fork() (Space, error)            { return s.sub.NewSpace() }
func (s *fakeSpace) Close() error {
	s.sub.open.Add(-1)
	return nil
}
func (s *fakeSpace) NewCopier(CopierKind) (Copier, error) {
	s.sub.open.Add(1)
	return fakeCopier{s.sub}, nil
}

type fakeCopier struct{ sub *fake }

func (fakeCopier) ReadEach([]uint64, []byte) error  { return nil }
func (fakeCopier) WriteEach([]uint64, []byte) error { return nil }
func (c fakeCopier) Roots() []any                   { return []any{c.sub} }
func (c fakeCopier) Close() error {
	c.sub.open.Add(-1)
	return nil
}
