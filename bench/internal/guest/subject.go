package guest

import (
	"fmt"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
)

// memorySize is the cap on guest memory: the 1 GiB that the largest row
// touches, with its tables, several times over. It is not populated.
const memorySize = 4 << 30

// maxAreas is above what the rows make; the default is Linux's 65 530.
const maxAreas = 2_000_000

// A Subject is one Memory.
type Subject struct{ mem *guestmem.Memory }

// New returns a Subject with nothing mapped.
func New() (*Subject, error) {
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: memorySize, Name: "bench"})
	if err != nil {
		return nil, err
	}
	return &Subject{mem}, nil
}

// NewSpace returns an address space that may have more areas than the rows
// make.
func (s *Subject) NewSpace() (workload.Space, error) {
	as, err := s.mem.NewAddressSpace(guestmem.SpaceOptions{MaxAreas: maxAreas})
	if err != nil {
		return nil, err
	}
	return &space{s.mem, as}, nil
}

// Settle has nothing to wait for: there is no background work.
func (s *Subject) Settle() {}

// Close checks that every count equals the references found, so that no
// figure comes from a Memory that lost track, and closes it.
func (s *Subject) Close() error {
	if err := s.mem.Check(); err != nil {
		return fmt.Errorf("after the benchmarks: %w", err)
	}
	return s.mem.Close()
}
