package guestmem

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// An object over a file of the host has no copy of the file. Each of its frames is a
// place in the frame pool's region where the file's own page is mapped, over the
// pool's, in the slot mapping and in the alias:
//
//	guest's leaf ─► frame ─► slot, alias ─┬─► memfd of the pool
//	                                      └─► page of the file, while it is mapped
//
// So vCPUs, Go code and whoever else has the file see one memory, and nothing has to
// be compared or sent. All else (counts, sharing, copies on write, sweeps) goes by
// frames as ever. What it costs is a frame of the pool and up to four mappings of the host
// process (vm.max_map_count) for each page that guests have touched and is not mapped
// next to its neighbour.
//
// Two rules follow. Such a frame goes back to the pool only when the pool's own page
// is mapped there again, so that the object keeps its reference until nobody else
// has one. And Go code may touch it only where a fault is caught: somebody else
// may cut the file short. A vCPU that touches what was cut leaves the guest with an error
// of KVM_RUN (EFAULT).

// NewHostObject returns an object over a file of the host, all of it, from the start on:
// coherent with every other use of the file, by anybody. Its length is the file's:
// what others write behind the end can be mapped, what they cut off is ErrBus.
// ReadAt and WriteAt are pread and pwrite; Sync is fsync. Where the descriptor was not
// opened for writing, shared areas can only be read.
//
// The descriptor is duplicated. Live snapshots of the memory's first region, which arm
// its mappings, cannot be taken while there are pages of it.
//
// Errors: ErrInvalid for what is not a regular file or memfd; ErrNotSupported for a memory
// without a frame pool; ErrClosed; the errno of fcntl. Linux 5.14.
func (m *Memory) NewHostObject(f *os.File, name string) (*Object, error) {
	const op = "new host object"
	if m.pool == nil {
		return nil, opError(op, addr.Range{}, errNoPool)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	if !st.Mode().IsRegular() {
		return nil, opError(op, addr.Range{}, fmt.Errorf("%s is %v: %w", f.Name(), st.Mode(), ErrInvalid))
	}
	_, writable, err := sys.FileSize(f)
	if err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	file, err := sys.Dup(f)
	if err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	m.hosted.Store(true)
	o, err := m.newObject(ObjectOptions{Size: st.Size(), Name: name, Released: func() { file.Close() }})
	if err != nil {
		file.Close()
		return nil, opError(op, addr.Range{}, err)
	}
	o.host, o.readOnly = file, !writable
	return o, nil
}

// refreshSize takes over the file's length.
func (o *Object) refreshSize() (uint64, error) {
	st, err := o.host.Stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBus, o.ioError("stat", 0, err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.size.Store(uint64(st.Size()))
	return uint64(st.Size()), nil
}

// fillHost maps a page of the file over a frame.
//
// Errors: ErrNoMemory, ErrBus past the end.
func (o *Object) fillHost(index uint64) error {
	began, ok := o.beginFill(index, 1)
	if !ok {
		o.awaitPunching()
		return nil
	}
	size, err := o.refreshSize()
	if err != nil {
		return err
	}
	if index >= pageCount(size) {
		return fmt.Errorf("page %#x of %s, which has %#x bytes: %w", index, o.name, size, ErrBus)
	}
	var f [1]addr.PFN
	if err := o.mem.allocate(f[:]); err != nil {
		return err
	}
	if err := o.mem.mapOver(f[0], o, index*addr.PageSize); err != nil {
		o.mem.giveBackHosted(f[:])
		return err
	}
	slot := o.slot(index)
	o.mu.Lock()
	won := o.cuts == began.cuts && slot.CompareAndSwap(0, uint64(f[0]))
	o.mu.Unlock()
	if !won {
		o.mem.giveBackHosted(f[:])
		return nil
	}
	o.mem.objectPages.Inc()
	return nil
}

// mapOver maps a page of an object's file where a frame is, which nobody else has.
func (m *Memory) mapOver(f addr.PFN, o *Object, off uint64) error {
	sharing := sys.Shared
	if o.readOnly {
		sharing = sys.Private // nobody stores to it; what others do is seen
	}
	_, alias, slot := m.store.pages(f, 1)
	for _, b := range [][]byte{slot, alias} {
		if err := sys.FileOver(b, o.host, off, sharing); err != nil {
			return fmt.Errorf("map %s at %#x: %w", o.name, off, hostShort(err))
		}
	}
	// Read ahead of the section that will touch it, not in it.
	if err := sys.PopulateRead(alias); err != nil {
		return fmt.Errorf("%w: %w", ErrBus, o.ioError("read", off, err))
	}
	return nil
}

// giveBackHosted maps the pool's page where frames are again, and drops them. Those
// that somebody else has still, a pin or what the reclaimer is about to drop, are
// kept for later; so are those that the host does not map.
func (m *Memory) giveBackHosted(frames []addr.PFN) {
	m.hostedMu.Lock()
	defer m.hostedMu.Unlock()
	left := append(m.hostedLeft, frames...)
	if slices.ContainsFunc(left, func(f addr.PFN) bool { return m.pool.Of(f) != 1 }) {
		m.domain.FlushAll()
	}
	m.hostedLeft = nil
	for _, f := range left {
		if m.pool.Of(f) != 1 || m.mapPool(f) != nil {
			m.hostedLeft = append(m.hostedLeft, f)
			continue
		}
		m.pool.Drop(f)
		m.pool.FreeData(f)
	}
}

// mapPool maps the pool's own page where a frame is.
func (m *Memory) mapPool(f addr.PFN) error {
	first, alias, slot := m.store.pages(f, 1)
	for _, b := range [][]byte{slot, alias} {
		if err := sys.FileOver(b, m.frames.host.file, first*addr.PageSize, sys.Shared); err != nil {
			return err
		}
		_ = sys.Advise(b, sys.NoHugePages) // as it was
	}
	return m.store.Populate(f, 1)
}

// leftHosted calls fn for the frames that wait to be given back.
func (m *Memory) leftHosted(fn func(addr.PFN)) {
	m.hostedMu.Lock()
	defer m.hostedMu.Unlock()
	for _, f := range m.hostedLeft {
		fn(f)
	}
}

// dropPages gives frames of the object's up, whose pages nobody can find any more.
func (o *Object) dropPages(frames []addr.PFN) {
	if o.host != nil {
		o.mem.giveBackHosted(frames)
		return
	}
	o.mem.returnFrames(frames)
}

// copyGuarded is copyPage for a page that may be a file's, and gone.
func (m *Memory) copyGuarded(p []byte, f addr.PFN, off uint64, access Access) (n int, lost bool) {
	ok := guard(func() { n = m.copyPage(p, f, off, access) })
	return n, !ok
}

// copyFrame copies a frame, and returns false if that is a file's page which is gone.
func (m *Memory) copyFrame(dst, src addr.PFN) bool {
	if m.hosted.Load() {
		return guard(func() { m.arena.Copy(dst, src) })
	}
	m.arena.Copy(dst, src)
	return true
}

// isGuarded reports whether Go code may touch the region only where a fault is caught:
// the pool's, too, once files of the host may be mapped over frames of it.
func (r *Region) isGuarded() bool { return r.guarded || r.pooled && r.mem.hosted.Load() }

// readHost is ReadAt.
func (o *Object) readHost(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := o.host.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = o.ioOpError("read object", off, len(p), o.ioError("read", uint64(off), err))
	}
	return n, err
}

// writeHost is WriteAt.
func (o *Object) writeHost(ctx context.Context, p []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := o.host.WriteAt(p, off)
	if err != nil {
		err = o.ioOpError("write object", off, len(p), o.ioError("write", uint64(off), err))
	}
	if _, e := o.refreshSize(); err == nil {
		err = e
	}
	return n, err
}
