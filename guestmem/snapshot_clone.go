package guestmem

import (
	"context"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
	"github.com/guestmm/guestmm/uffd"
)

// ForkOptions say how a running memory is forked.
type ForkOptions struct {
	SnapshotOptions
	CloneOptions
}

// Fork makes a second memory from one that is in use: a snapshot, and a clone of
// it that fetches what is missing from this one on demand, and in the background
// unless o.Sweep says otherwise; then on demand only, for as long as the clone lives.
// The two share nothing that either could see.
//
// Errors: as Snapshot and Clone.
func (m *Memory) Fork(ctx context.Context, o ForkOptions) (*Memory, error) {
	s, err := m.Snapshot(ctx, o.SnapshotOptions)
	if err != nil {
		return nil, err
	}
	defer s.Close() // also where the embedder's hook panics
	clone, err := s.Clone(ctx, o.CloneOptions)
	if closing := s.Close(); closing != nil && err == nil {
		return nil, errors.Join(closing, clone.Close())
	}
	return clone, err
}

// Clone returns a new memory with the regions and the content of the snapshot, which
// may not be complete yet: each region is one private mapping of the layer, and a page
// that the layer lacks is copied there when it is first touched. Once the snapshot is
// complete nothing is intercepted any more, and the clone is as one of a template.
// Regions of huge pages have small ones in a clone.
//
// The parent is needed until then, and is not closed before (ErrBusy); the snapshot
// may be closed. A clone can be snapshotted, forked and sealed in turn: Seal waits for
// what it lacks. If the snapshot fails before it is complete, what the clone
// lacks is gone: see CloneOptions.OnFailure.
//
// Errors: ErrClosed; what the snapshot has failed with; ErrNoMemory where the host is
// short of mappings or address space; that of the hook; those of userfaultfd(2)
// where the snapshot is not complete, ErrNotSupported among them (Linux 4.11 for
// shared memory); ctx's. Nothing is left of a clone that failed.
func (s *Snapshot) Clone(ctx context.Context, o CloneOptions) (*Memory, error) {
	const op = "clone a snapshot"
	if err := ctx.Err(); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	if err := s.hold(); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	m, err := s.mapLayers()
	if err != nil {
		return nil, opError(op, addr.Range{}, errors.Join(err, s.unhold()))
	}
	m.waitForParent(s, o.OnFailure)
	if o.Hook != nil {
		returned := false
		defer func() {
			if !returned {
				_ = m.Close() // the hook has panicked
			}
		}()
		err := o.Hook(m)
		returned = true
		if err != nil {
			return nil, opError(op, addr.Range{}, errors.Join(fmt.Errorf("hook: %w", err), m.Close()))
		}
	}
	return m, nil
}

// mapLayers makes the memory of a clone.
func (s *Snapshot) mapLayers() (_ *Memory, err error) {
	m, err := NewMemory(MemoryOptions{})
	if err != nil {
		return nil, err
	}
	var table regionTable
	defer func() {
		if err != nil {
			m.endSnapshots()
			err = errors.Join(err, m.retire(table...), m.Close())
		}
	}()
	for _, l := range s.layers {
		l.image.ref()
		tr := templateRegion{
			base: l.Base, size: l.Size, pageSize: addr.PageSize, name: l.Name, readOnly: l.ReadOnly,
			advice: l.region.advice, numa: l.region.numa, image: l.image,
		}
		r, err := tr.mapFor(m) // takes over the reference, also where it fails
		if err != nil {
			return nil, err
		}
		table = append(table, r)
		if l.left.Load() == 0 {
			continue
		}
		if err := l.mayBeCloned(); err != nil {
			return nil, err
		}
		r.lazy.Store(&cloneFrom{l})
		w, err := m.ownWatcher()
		if err != nil {
			return nil, err
		}
		if err := w.watch(r, uffd.Missing); err != nil {
			return nil, err
		}
	}
	m.publish(table)
	return m, nil
}

// cloneFrom is where a region of a clone has its pages from. The clone holds the
// snapshot.
type cloneFrom struct{ l *layer }

// cloneAround is how many pages are brought for one that is touched.
const cloneAround = 8

// bring returns once the layer has the pages, in memory, so that to touch them in
// the clone intercepts nothing.
//
// Errors: what the snapshot has failed with; ctx's.
func (f *cloneFrom) bring(ctx context.Context, first, n uint64) error {
	l := f.l
	if l.s.enter() {
		defer l.s.end()
	} else if !l.has.hasAll(first, n) {
		return fmt.Errorf("a page that the clone lacks: %w", errSnapshotClosed)
	} // else the layer is the clones' alone by now, and this one has not seen it yet
	if !l.has.hasAll(first, n) {
		from := first / cloneAround * cloneAround
		to := min((first+n+cloneAround-1)/cloneAround*cloneAround, l.nPages)
		if err := l.fill(ctx, from, to-from); err != nil {
			if ctx.Err() == nil {
				l.s.failIf(err)
			}
			return fmt.Errorf("a page that the clone lacks: %w", err)
		}
	}
	return l.back(first, n)
}

// waitForParent has the clone let go of the snapshot once it is complete.
func (m *Memory) waitForParent(s *Snapshot, onFailure func(error)) {
	ctx, cancel := context.WithCancel(context.Background())
	m.snaps.ending.Store(&cancel)
	m.snaps.clones.Go(func() {
		defer func() { _ = s.unhold() }() // there is nobody to tell of an errno of close
		select {
		case <-ctx.Done():
			return
		case <-s.done:
		}
		if err := s.Err(); err != nil {
			if onFailure != nil {
				go onFailure(err) // it may close the memory
			}
			<-ctx.Done()
			return
		}
		m.endLazy()
	})
}

// endLazy ends the intercepting of a clone whose layers are complete. What is armed
// stays registered, and holes are given memory as they are touched.
func (m *Memory) endLazy() {
	m.snaps.gate.Lock()
	defer m.snaps.gate.Unlock()
	w := m.snaps.watch.Load()
	for _, r := range m.table() {
		if r.lazy.Load() == nil {
			continue
		}
		r.lazy.Store(nil)
		if w != nil && !m.snaps.isKept() {
			_ = w.unwatch(r) // or it goes on intercepting holes
		}
	}
}

// completeClone gets what a clone lacks.
func (m *Memory) completeClone() error {
	for _, r := range m.table() {
		from := r.lazy.Load()
		if from == nil {
			continue
		}
		if err := from.l.s.sweep(from.l.s.ctx); err != nil {
			return err
		}
	}
	m.endLazy()
	return nil
}

// allocate gives a page of the file behind a mapping memory.
func (h *hostMemory) allocate(page uint64) error {
	return sys.Allocate(h.file, h.offset+page*addr.PageSize, addr.PageSize)
}
