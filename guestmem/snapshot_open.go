package guestmem

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Snapshot freezes the content of the memory in a new snapshot, while the guest
// runs on: vCPUs stand still while what was written since the snapshot before (or all
// of it, the first time) is write-protected, which takes 7 ms for each GiB of small
// pages, and nothing is copied meanwhile but what Slices hold for writing.
//
// What is a store by whom:
//
//   - vCPUs, and system calls on the slot mapping (vhost, io_uring, process_vm_writev),
//     are trapped by the kernel at their first write to each page.
//   - Stores of this package are refused while the window is opening, and copy a page
//     first from then on.
//   - Slices held for writing are copied at the instant, and always count as written.
//   - Other processes that map the same memory, and the embedder's own stores through
//     an alias, are not seen.
//
// Read-only regions are copied as they are, whenever it suits. A memory with a frame
// pool is refused: what its address spaces are, areas and counts, is not in its
// memory, and a clone would have page tables without anybody to change them.
//
// Errors, with the guest going on as if nothing had been asked: ErrNotSupported for a
// memory with a frame pool, and where the kernel traps no writes to what a region is
// made of (files that are not in memory; before Linux 5.19 shared memory, before 6.4
// private memory) or its fault server is no Armer; ErrBusy where another userfaultfd
// has a region; ErrNoMemory; ErrInvalid where there is no region; ErrClosed; that of
// Prepare or AtInstant; ctx's, if it ended before the vCPUs were stopped; those of
// userfaultfd(2).
func (m *Memory) Snapshot(ctx context.Context, o SnapshotOptions) (*Snapshot, error) {
	s, err := m.snapshotUnder(ctx, o)
	if err != nil {
		return nil, opError("snapshot", addr.Range{}, err)
	}
	if o.Sweep == SweepInBackground {
		s.sweepInBackground()
	}
	return s, nil
}

func (m *Memory) snapshotUnder(ctx context.Context, o SnapshotOptions) (*Snapshot, error) {
	m.layout.Lock()
	defer m.layout.Unlock() // also where the embedder's code panics
	return m.snapshotLocked(ctx, o)
}

func (m *Memory) snapshotLocked(ctx context.Context, o SnapshotOptions) (_ *Snapshot, err error) {
	table := m.table()
	switch {
	case m.isClosed():
		return nil, ErrClosed
	case m.pool != nil:
		return nil, fmt.Errorf("the memory has a frame pool of %#x bytes (MemoryOptions.Size): %w", m.frames.size, ErrNotSupported)
	case len(table) == 0:
		return nil, fmt.Errorf("there is no region: %w", ErrInvalid)
	case o.Sweep > SweepOnDemand || o.After > DisarmSwept || o.Workers < 0:
		return nil, fmt.Errorf("sweep %d, after %d, workers %d: %w", o.Sweep, o.After, o.Workers, ErrInvalid)
	}
	s := &Snapshot{mem: m, o: o, done: make(chan struct{}), byHome: make(map[*Region]*layer), holds: 1}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	opened := false
	defer func() {
		if !opened { // also where the embedder's code panics
			m.cancelOpened(s)
			err = errors.Join(err, s.discardLayers())
			s.cancel()
			m.unkeep(s)
		}
	}()
	m.keep()
	if s.stores, err = openLayerStores(); err != nil {
		return nil, err
	}
	for _, r := range table {
		l, err := newLayer(s, r)
		if err != nil {
			return nil, fmt.Errorf("region %v: %w", r, err)
		}
		s.layers = append(s.layers, l)
		s.byHome[r] = l
		s.left.Add(int64(l.nPages))
		if !r.readOnly {
			if l.arms, err = m.prepareArming(r); err != nil {
				return nil, err
			}
		}
	}
	s.rehearse()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err = m.openWindow(s); err != nil {
		return nil, err
	}
	opened = true
	return s, nil
}

// prepareArming has the region registered with whoever arms it.
func (m *Memory) prepareArming(r *Region) (*armMap, error) {
	if s := r.server.Load(); s != nil {
		if _, ok := s.FaultServer.(Armer); !ok {
			return nil, fmt.Errorf("the fault server of the region %v cannot write-protect (guestmem.Armer): %w", r, ErrNotSupported)
		}
	} else {
		w, err := m.ownWatcher()
		if err != nil {
			return nil, err
		}
		if err := w.watch(r, uffd.WP); err != nil {
			return nil, err
		}
	}
	if r.arms.Load() == nil {
		r.arms.Store(newArmMap(r.nPages(), r.pageSize/addr.PageSize))
	}
	return r.arms.Load(), nil
}

// openWindow takes the snapshot (R15):
//
//	vCPUs out of the guest         nothing else is held: a vCPU may be in a fault
//	                               that our handlers have to answer
//	regions' pop                   nobody populates, or makes pages writable for Go code
//	door shut for stores, barrier  no store of Go code is under way
//	gate                           no handler, sweep or Go store has a claim, so that
//	                               nobody can be disarming
//	arm what is not armed          the instant
//	gate open                      stores of system calls may be answered again
//	AtInstant
//	door open, vCPUs go on
//
// The order of the first four is that in which the ones wait for the others: a vCPU
// for handlers; who populates for handlers; a section for nobody; a claim for nobody.
func (m *Memory) openWindow(s *Snapshot) error {
	began := time.Now()
	defer func() { s.stats.pause.Store(int64(time.Since(began))) }()
	if p := s.o.Pauser; p != nil {
		p.Pause()
		defer p.Resume()
	}
	if s.o.Prepare != nil {
		if err := s.o.Prepare(); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	m.windows.Lock()
	defer m.windows.Unlock()
	m.lockPops(s)
	for _, l := range s.layers {
		if l.arms != l.region.arms.Load() && l.arms != nil {
			m.unlockPops(s)
			return fmt.Errorf("who serves the region %v has changed meanwhile: %w", l.region, ErrBusy)
		}
	}
	m.door.close(shutForStores)
	defer m.door.reopen()
	m.domain.BarrierAll()
	m.snaps.gate.Lock()
	err := m.arm(s)
	if err == nil {
		if s.left.Load() > 0 {
			s.needs.Store(true)
			m.snaps.add(s)
		}
	}
	m.snaps.gate.Unlock()
	m.unlockPops(s)
	if err != nil {
		return err
	}
	if s.o.AtInstant != nil {
		if err := s.o.AtInstant(); err != nil {
			return fmt.Errorf("at the instant: %w", err)
		}
	}
	return nil
}

func (m *Memory) lockPops(s *Snapshot) {
	for _, l := range s.layers {
		l.region.pop.Lock()
	}
}

func (m *Memory) unlockPops(s *Snapshot) {
	for _, l := range s.layers {
		l.region.pop.Unlock()
	}
}

// cancelOpened takes back a snapshot that nobody has yet, if it has been opened. What
// it has armed stays so, and the next one's books know.
func (m *Memory) cancelOpened(s *Snapshot) {
	s.finish(errSnapshotClosed)
	m.snaps.settle()
}

// arm arms what is not armed, and copies what is held for writing.
//
// Preconditions: the gate is held exclusively, no store of Go code is under way,
// and nobody populates.
func (m *Memory) arm(s *Snapshot) error {
	for _, p := range s.plans {
		p.make()
		for _, run := range p.runs {
			// Before the kernel arms them, or a store through the only mapping
			// there is would park its thread (R10).
			p.r.writable.remove(run.first, run.n)
		}
	}
	began := time.Now()
	err := armAll(m, s.plans, s.o.Workers)
	s.stats.arm.Store(int64(time.Since(began)))
	if err != nil {
		// Pages that were armed and are not in the books are disarmed by the
		// first write to them.
		return fmt.Errorf("arm: %w", err)
	}
	for _, p := range s.plans {
		p.commit()
		s.stats.armed.Add(p.armed * p.a.unit)
		s.stats.runs.Add(uint64(len(p.runs)))
		s.stats.written.Add(p.wrote * p.a.unit)
	}
	if m.snaps.age != nil {
		m.snaps.age.next.Store(s.age)
	}
	m.snaps.age = s.age
	for _, p := range s.plans {
		if err := s.copyPinned(p); err != nil {
			return err
		}
	}
	return nil
}

// copyPinned copies what is held for writing into the new snapshot: nobody is told of
// a device's stores (R7). Older snapshots have it since it was disarmed.
func (s *Snapshot) copyPinned(p *armPlan) error {
	if p.pinned == nil {
		return nil
	}
	l := s.byHome[p.r]
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	var err error
	for word, mask := range p.pinned {
		p.a.eachUnitRun(uint64(word), mask, func(first, n uint64) {
			s.stats.pinned.Add(n)
			for n > 0 && err == nil {
				k := min(n, pieceBytes/addr.PageSize)
				b := (*buf)[:k*addr.PageSize]
				if err = p.r.readHost(first, b); err == nil {
					err = l.put(first, b)
				}
				first, n = first+k, n-k
			}
		})
		if err != nil {
			return fmt.Errorf("copy what slices hold for writing: %w", err)
		}
	}
	return nil
}
