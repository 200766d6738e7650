//go:build linux && amd64

package kvm

import (
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// quarantine holds table frames that nothing references any more, but that a
// vCPU or KVM may still have cached as tables. A table that came to life at the same
// guest-physical address would be taken for the old one.
type quarantine struct {
	limit  int // immutable
	mu     sync.Mutex
	frames []addr.PFN // guarded by mu
}

// add returns how many there are now.
func (q *quarantine) add(frames []addr.PFN) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.frames = append(q.frames, frames...)
	return len(q.frames)
}

func (q *quarantine) takeAll() []addr.PFN {
	q.mu.Lock()
	defer q.mu.Unlock()
	frames := q.frames
	q.frames = nil
	return frames
}

// spareSlot is a memory slot of one page that no guest sees. Deleting a slot
// has KVM drop every shadow page of the VM.
type spareSlot struct {
	mu   sync.Mutex // one zap at a time
	page []byte
	gpa  addr.GPA // mu
	vm   *vm
	in   bool // the slot is in the VM; mu
}

const spareSlotID = 1

func (s *spareSlot) init(m *vm, after addr.GPA) (err error) {
	s.vm = m
	s.place(after)
	s.page, err = mapMemory(-1, addr.PageSize, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return opError("mmap spare slot", err)
	}
	return s.putLocked()
}

// putLocked puts the slot into the VM, if it is not there.
func (s *spareSlot) putLocked() error {
	if s.in {
		return nil
	}
	err := s.vm.setSlot(spareSlotID, s.gpa, addr.PageSize, addr.HVA(addressOf(s.page)))
	s.in = err == nil
	return err
}

// zap drops all that KVM has cached of the guest's page tables.
func (s *spareSlot) zap() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.putLocked(); err != nil {
		return err
	}
	if err := s.vm.setSlot(spareSlotID, s.gpa, 0, addr.HVA(addressOf(s.page))); err != nil {
		return err
	}
	s.in = false
	// For the next zap, which tries again if this fails: the deletion did the work.
	_ = s.putLocked()
	return nil
}

func (s *spareSlot) close() error {
	if s.page == nil {
		return nil
	}
	if err := unmapMemory(s.page); err != nil {
		return opError("munmap spare slot", err)
	}
	s.page = nil
	return nil
}

// retire takes frames into the quarantine, and flushes it when it is full.
func (p *Platform) retire(frames []addr.PFN) {
	if p.quarantine.add(frames) >= p.quarantine.limit {
		p.flush()
	}
}

// flush empties the quarantine: it makes KVM and every vCPU forget all tables,
// and gives the frames back.
//
// That a vCPU rests with a retired root in CR3 does no harm: its next entry
// brings a root with the registers, and nothing is executed before (load). If the
// frame has become that root, by its number the same, what KVM kept of the old one is
// gone.
func (p *Platform) flush() {
	frames := p.quarantine.takeAll()
	if len(frames) == 0 {
		return
	}
	p.stopAll()
	err := p.dropTables()
	p.resumeAll()
	if err != nil {
		p.quarantine.add(frames) // not reusable, then; the next flush tries again
		return
	}
	p.mem.ReuseTables(frames)
}

// dropTables makes every cached translation of the VM go, those of inner
// tables included.
//
// Preconditions:
//   - stopAll is in effect.
func (p *Platform) dropTables() error {
	if p.traits.invalidate == byFlush {
		p.flushed.Store(p.generation.Add(1))
		return nil
	}
	return p.spare.zap()
}
