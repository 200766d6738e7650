package guestmem

import (
	"fmt"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// SpaceSnapshot is an address space as it was at one instant: its areas, break,
// locks and pages. It is a fork that nobody runs in: it shares every table and
// frame with the address space until one of them is written, and so costs a
// frame or two, and what is written after it once. Safe for concurrent use.
//
// It counts as an open address space of its Memory until Close.
//
// What it does not keep: the pages of shared areas, which are whoever maps
// them; pins, which belong to whoever took them (a snapshot has a copy of what a
// pinned page held, see Rollback).
type SpaceSnapshot struct {
	of     *AddressSpace // immutable
	frozen *AddressSpace // immutable; nobody looks anything up in it

	mu     sync.Mutex
	users  int  // calls that need frozen; mu
	closed bool // mu
}

// Snapshot keeps the address space as it is. Its cost is that of Fork, without
// what Fork does for areas that a child does not get: it does not grow with the
// memory or the number of areas, but with the pages that are pinned, which are
// copied at once, and with the objects mapped.
//
// Errors, with nothing changed: ErrNoMemory; ErrBusy where a monitor has areas;
// ErrClosed.
func (as *AddressSpace) Snapshot() (*SpaceSnapshot, error) {
	const op = "snapshot"
	// Rolling back takes a frame for a root. One is set aside here, or a guest that
	// has used all memory up could not be rolled back for want of it.
	var spare [1]addr.PFN
	if err := as.mem.allocateTables(spare[:]); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	frozen, _, err := as.fork(toKeep, spare[0])
	if err != nil {
		as.mem.returnTables(spare[0])
		return nil, opError(op, addr.Range{}, err)
	}
	return &SpaceSnapshot{of: as, frozen: frozen}, nil
}

// errWatched refuses what would take pages from under a monitor that hears nothing
// of it (R9).
var errWatched = fmt.Errorf("a monitor has areas of it: %w", ErrBusy)

// isWatched reports whether a monitor has areas.
func (c *changeUnderWay) isWatched() bool {
	for _, a := range c.areas.Listed() {
		if a.Watch != nil {
			return true
		}
	}
	return false
}

// Close gives back what only the snapshot uses. Closing twice does nothing.
// Calls that are using it end first: the last one gives it back. The address
// space may be closed before or after. The error is always nil. Safe for concurrent use.
func (s *SpaceSnapshot) Close() error {
	s.mu.Lock()
	last := !s.closed && s.users == 0
	s.closed = true
	s.mu.Unlock()
	if last {
		return s.frozen.Close()
	}
	return nil
}

// Of returns the address space that it is a snapshot of.
func (s *SpaceSnapshot) Of() *AddressSpace { return s.of }

// hold keeps the snapshot from being given back until letGo.
//
// Errors: ErrClosed.
func (s *SpaceSnapshot) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.users++
	return nil
}

// letGo ends what hold began. No change lock is held: a Close may be waiting to
// happen here.
func (s *SpaceSnapshot) letGo() {
	s.mu.Lock()
	s.users--
	last := s.closed && s.users == 0
	s.mu.Unlock()
	if last {
		_ = s.frozen.Close() // it has nothing to report
	}
}
