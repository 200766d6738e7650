package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// begin keeps the layers from going until end.
func (s *Snapshot) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.forgot {
		return errSnapshotClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Snapshot) end() { s.users.Done() }

// enter is begin for a clone, which may go on after the owner has closed the snapshot,
// and may come late: false if the layers are gone.
func (s *Snapshot) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone {
		s.users.Add(1)
	}
	return !s.gone
}

// Forget gives the layers back to the host, for a snapshot whose bytes have gone
// elsewhere, such as into a file: nothing can be read of it any more, but it still
// keeps pages armed, and is there for Changed, until Close.
//
// Errors: ErrBusy while clones of it lack pages; ErrClosed.
func (s *Snapshot) Forget() error {
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return opError("forget a snapshot", addr.Range{}, errSnapshotClosed)
	case s.holds > 1:
		s.mu.Unlock()
		return opError("forget a snapshot", addr.Range{}, fmt.Errorf("%d clones lack pages: %w", s.holds-1, ErrBusy))
	case s.forgot:
		s.mu.Unlock()
		return nil
	}
	s.forgot = true
	s.mu.Unlock()
	if err := s.endLayers(); err != nil {
		return opError("forget a snapshot", addr.Range{}, err)
	}
	return nil
}

// Close ends the snapshot at any time, and cancels what is being copied for it.
// Clones keep what they need of it: where one still lacks pages, copying goes on
// until it does not; with SweepOnDemand only as it touches them, and the memory cannot
// be closed (ErrBusy) until the clone is. When the last open snapshot of a memory is closed, everything
// is disarmed. Closing twice does nothing.
//
// Errors: the errno of close; the snapshot is closed.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	if err := s.unhold(); err != nil {
		return opError("close a snapshot", addr.Range{}, err)
	}
	return nil
}

// hold keeps the snapshot for a clone.
func (s *Snapshot) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.forgot {
		return errSnapshotClosed
	}
	if s.err != nil {
		return s.err
	}
	s.holds++
	return nil
}

// unhold lets go of it, and ends it with the last hold.
func (s *Snapshot) unhold() error {
	s.mu.Lock()
	s.holds--
	last, forgot := s.holds == 0, s.forgot
	s.mu.Unlock()
	if !last {
		return nil
	}
	var err error
	if !forgot {
		err = s.endLayers()
	}
	s.mem.unkeep(s)
	return err
}

// keep says that armed pages are to stay so, until unkeep. The gate has who is about
// to disarm everything see it, or done.
func (m *Memory) keep() {
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	m.snaps.mu.Lock()
	defer m.snaps.mu.Unlock()
	m.snaps.kept++
}

// unkeep undoes keep for a snapshot, once, and with the last one disarms everything.
func (m *Memory) unkeep(s *Snapshot) {
	m.snaps.mu.Lock()
	last := false
	if !s.unkept {
		s.unkept = true
		m.snaps.kept--
		last = m.snaps.kept == 0
	}
	m.snaps.mu.Unlock()
	if last {
		m.disarmUnkept()
	}
}

// isKept reports whether a snapshot wants armed pages to stay so.
func (p *snapshots) isKept() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept > 0
}

// endLayers ends everything that uses the layers, and gives them back.
func (s *Snapshot) endLayers() error {
	s.finish(errSnapshotClosed)
	s.cancel()
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	s.mem.snaps.settle()
	s.users.Wait()
	return s.discardLayers()
}

func (s *Snapshot) discardLayers() error {
	var errs []error
	for _, l := range s.layers {
		l.backing.Lock() // a clone that comes late finds it closed
		errs = append(errs, l.to.close())
		l.backing.Unlock()
		errs = append(errs, l.image.unref())
	}
	if s.stores != nil {
		errs = append(errs, s.stores.Close())
	}
	return errors.Join(errs...)
}

// disarmUnkept disarms everything if no snapshot wants it armed.
func (m *Memory) disarmUnkept() {
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	if m.snaps.isKept() {
		return
	}
	for _, r := range m.table() {
		// What the kernel refuses stays armed, here and there: writes to it fault.
		_ = m.disarmRegion(r)
	}
}

// disarmAll is disarmUnkept for a memory that is about to end.
func (m *Memory) disarmAll() error {
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	for _, r := range m.table() {
		if err := m.disarmRegion(r); err != nil {
			return err
		}
	}
	return nil
}

// disarmRegion disarms all of a region.
//
// Preconditions: the gate is held exclusively; nobody lacks pages of the region.
func (m *Memory) disarmRegion(r *Region) error {
	a := r.arms.Load()
	if a == nil {
		if w := m.snaps.watch.Load(); w != nil && r.lazy.Load() == nil {
			return w.unwatch(r) // a clone's that is complete
		}
		return nil
	}
	by := m.armerOf(r)
	if w, own := by.(*watcher); own && r.lazy.Load() == nil {
		if err := w.unwatch(r); err != nil {
			return err
		}
	} else if by != nil && a.any(0, r.nPages()) {
		if err := by.Disarm(r, 0, r.nPages()); err != nil {
			return err
		}
	}
	a.clear()
	return nil
}

// forgetArms has a region registered with nobody, and nothing of it armed.
//
// Errors: ErrBusy if an open snapshot lacks pages of it, or it is a clone's that
// lacks pages.
func (m *Memory) forgetArms(r *Region) error {
	if r.arms.Load() == nil && r.watched.Load() == 0 {
		return nil
	}
	if err := m.snaps.needed(r); err != nil {
		return err
	}
	if r.lazy.Load() != nil {
		return fmt.Errorf("the clone's region %v lacks pages: %w", r, ErrBusy)
	}
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	if err := m.disarmRegion(r); err != nil {
		return err
	}
	if w := m.snaps.watch.Load(); w != nil {
		if err := w.unwatch(r); err != nil {
			return err
		}
	}
	r.arms.Store(nil)
	return nil
}

// unwatch ends the registration of a region that is being removed.
func (m *Memory) unwatch(r *Region) {
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	r.arms.Store(nil)
	if w := m.snaps.watch.Load(); w != nil {
		_ = w.unwatch(r) // the mapping goes, and with it the registration
	}
}

// endSnapshots ends what a memory has of its own for snapshots, when it is closed:
// its userfaultfd, and its waiting for the snapshot that it is a clone of.
func (m *Memory) endSnapshots() {
	if stop := m.snaps.ending.Swap(nil); stop != nil {
		(*stop)()
	}
	if w := m.snaps.watch.Load(); w != nil {
		w.close()
		m.snaps.watch.Store(nil)
	}
	m.snaps.settle() // who reads for a snapshot that has failed, of a region that is about to go
	m.snaps.clones.Wait()
}
