package guestmem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// watcher is a memory's own userfaultfd, for regions that no fault server has: it
// arms them, and hears of writes to what is armed and, in clones of snapshots, of
// pages that the layer lacks.
//
// Its goroutines answer what they can at once. What has to wait, for a window or
// for somebody's claim, is answered by a goroutine of its own, so that they are always
// there for who else faults: a copy that somebody waits for may fault, too. There
// are at most as many as there are threads that fault.
type watcher struct {
	m       *Memory
	fd      atomic.Pointer[uffd.FD]
	spareMu sync.Mutex     // innermost
	spare   *uffd.FD       // nil if none could be had; spareMu
	waiters []*uffd.Waiter // spareMu
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	regions atomic.Pointer[[]*Region] // registered ones; written under mu
}

const nReaders = 2

// ownWatcher returns the memory's watcher, and makes it if there is none.
//
// Preconditions: layout is held, or nobody else knows the memory.
func (m *Memory) ownWatcher() (*watcher, error) {
	if w := m.snaps.watch.Load(); w != nil {
		return w, nil
	}
	if err := atUserfaultfd.Err(); err != nil {
		return nil, fmt.Errorf("userfaultfd: %w", err)
	}
	fd, err := uffd.Open(uffd.Options{
		Required: uffd.FeatureFaultWP,
		Optional: uffd.FeatureWPHugetlbShmem | uffd.FeatureWPUnpopulated | uffd.FeatureMissingShmem,
	})
	if err != nil {
		return nil, err
	}
	w := &watcher{m: m}
	w.fd.Store(fd)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.regions.Store(new([]*Region))
	if w.spare, err = fd.Dup(); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	for range nReaders {
		if _, err := w.newWaiter(fd); err != nil {
			w.closeWaiters()
			return nil, errors.Join(err, fd.Close(), w.spare.Close())
		}
	}
	for _, wt := range slices.Clone(w.waiters) {
		w.wg.Go(func() { w.serveAll(wt) })
	}
	m.snaps.watch.Store(w)
	return w, nil
}

// watch has the slot of r registered for mode, beside what it is registered for.
//
// Errors: ErrNotSupported, saying why, where the host cannot trap writes to what
// the region is made of; ErrBusy where another userfaultfd has the mapping.
func (w *watcher) watch(r *Region, mode uffd.Mode) error {
	old := uffd.Mode(r.watched.Load())
	if old&mode == mode {
		return nil
	}
	if err := w.mayArm(r, mode); err != nil {
		return err
	}
	err := atRegister.Err()
	if err == nil {
		err = w.with(func(fd *uffd.FD) error {
			_, err := fd.Register(r.Slot(), r.size, old|mode)
			return err
		})
	}
	switch {
	case err == nil:
	case errors.Is(err, syscall.EINVAL):
		err = fmt.Errorf("the kernel traps no writes to a %v: %w: %w", r.backing, ErrNotSupported, err)
	case errors.Is(err, syscall.EBUSY):
		err = fmt.Errorf("another userfaultfd has the mapping: %w: %w", ErrBusy, err)
	}
	if err != nil {
		if old == 0 {
			_ = w.fd.Load().Unregister(r.Slot(), r.size) // a part may be registered
		}
		return fmt.Errorf("region %v: %w", r, err)
	}
	r.watched.Store(uint64(old | mode))
	w.mu.Lock()
	defer w.mu.Unlock()
	l := slices.Clone(*w.regions.Load())
	if !slices.Contains(l, r) {
		l = append(l, r)
		slices.SortFunc(l, func(a, b *Region) int { return int(int64(a.Slot()) - int64(b.Slot())) })
		w.regions.Store(&l)
	}
	return nil
}

// mayArm says whether the kernel can trap the first write to a page of r, one
// that was never touched too.
func (w *watcher) mayArm(r *Region, mode uffd.Mode) error {
	have := w.fd.Load().Features()
	switch {
	case mode&uffd.WP == 0:
	case r.backing == BackingAnonymous || r.backing == BackingForeign:
		if !have.Has(uffd.FeatureWPUnpopulated) {
			return fmt.Errorf("region %v: first writes to private memory are not trapped before Linux 6.4: %w", r, ErrNotSupported)
		}
	}
	if mode&uffd.WP != 0 && r.backing != BackingAnonymous && !have.Has(uffd.FeatureWPHugetlbShmem) {
		return fmt.Errorf("region %v: writes to shared memory are not trapped before Linux 5.19: %w", r, ErrNotSupported)
	}
	if mode&uffd.Missing != 0 && !have.Has(uffd.FeatureMissingShmem) {
		return fmt.Errorf("region %v: shared memory cannot be served before Linux 4.11: %w", r, ErrNotSupported)
	}
	return nil
}

// unwatch ends the registration of r, which disarms all of it and wakes everybody.
func (w *watcher) unwatch(r *Region) error {
	if r.watched.Load() == 0 {
		return nil
	}
	err := atUnregister.Err()
	if err == nil {
		err = w.with(func(fd *uffd.FD) error { return fd.Unregister(r.Slot(), r.size) })
	}
	if err != nil && !errors.Is(err, syscall.ENOMEM) && !errors.Is(err, uffd.ErrClosed) {
		return fmt.Errorf("region %v: %w", r, err)
	}
	r.watched.Store(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	l := slices.DeleteFunc(slices.Clone(*w.regions.Load()), func(x *Region) bool { return x == r })
	w.regions.Store(&l)
	return nil
}

// Arm implements what Armer is for the memory's own userfaultfd.
func (w *watcher) Arm(r *Region, first, n uint64) error {
	if err := atArm.Err(); err != nil {
		return err
	}
	return w.protect(r, first, n, uffd.Armed)
}

// armRuns is Arm for runs of a region, for less for each.
func (w *watcher) armRuns(r *Region, runs []armRun) error {
	var refused error
	each := func(yield func(addr.HVA, uint64) bool) {
		for _, run := range runs {
			if refused = atArm.Err(); refused != nil || !yield(r.Slot()+addr.HVA(run.first*addr.PageSize), run.n*addr.PageSize) {
				return
			}
		}
	}
	err := w.fd.Load().ArmEach(each)
	if isLost(err) {
		err = w.with(func(fd *uffd.FD) error { return fd.ArmEach(each) })
	}
	return errors.Join(refused, err)
}

// Disarm is Arm's inverse. What is not registered any more is not armed.
func (w *watcher) Disarm(r *Region, first, n uint64) error {
	if err := atDisarm.Err(); err != nil {
		return err
	}
	err := w.protect(r, first, n, 0)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

func (w *watcher) protect(r *Region, first, n uint64, fl uffd.Flags) error {
	at, length := r.Slot()+addr.HVA(first*addr.PageSize), n*addr.PageSize
	err := w.fd.Load().WriteProtect(at, length, fl)
	if isLost(err) {
		err = w.with(func(fd *uffd.FD) error { return fd.WriteProtect(at, length, fl) })
	}
	return err
}

// arming is how a region is armed.
type arming interface {
	Arm(r *Region, first, n uint64) error
	Disarm(r *Region, first, n uint64) error
}

// armerOf returns who arms r: its fault server, or the memory itself; nil when the
// memory is closed, and nothing is armed.
func (m *Memory) armerOf(r *Region) arming {
	if s := r.server.Load(); s != nil {
		if a, ok := s.FaultServer.(Armer); ok {
			return a
		}
	}
	if w := m.snaps.watch.Load(); w != nil {
		return w
	}
	return nil
}

// serve answers faults until they cannot be read: ErrClosed, once the watcher is
// closed.
func (w *watcher) serve(wt *uffd.Waiter) error {
	events := make([]uffd.Event, 16)
	for {
		n, err := wt.Wait(events, -1)
		if errors.Is(err, uffd.ErrClosed) {
			return err
		}
		if err != nil {
			// Nobody else hears of the faults: it is tried again, without haste.
			time.Sleep(time.Millisecond)
			return err
		}
		for i := range events[:n] {
			if events[i].Kind == uffd.EventFault {
				w.fault(&events[i])
			}
		}
	}
}

func (w *watcher) find(at addr.HVA) (*Region, uint64) {
	l := *w.regions.Load()
	i, found := slices.BinarySearchFunc(l, at, func(r *Region, at addr.HVA) int {
		switch {
		case at < r.Slot():
			return 1
		case at >= r.Slot()+addr.HVA(r.size):
			return -1
		}
		return 0
	})
	if !found {
		return nil, 0
	}
	return l[i], uint64(at-l[i].Slot()) / addr.PageSize
}

func (w *watcher) fault(ev *uffd.Event) {
	r, page := w.find(ev.Addr)
	if r == nil {
		return // unregistered meanwhile, which woke whoever waited
	}
	if ev.Flags&uffd.FaultWP == 0 {
		w.wg.Go(func() { w.missing(r, page) })
		return
	}
	if w.m.tryWriteFault(r, page) {
		return
	}
	w.wg.Go(func() {
		w.m.insist(w.ctx, r, func() error { return w.m.disarmPage(w.ctx, r, page) })
	})
}

// tryWriteFault is disarmPage where nothing has to be waited for.
func (m *Memory) tryWriteFault(r *Region, page uint64) bool {
	if !m.snaps.gate.TryRLock() {
		return false
	}
	defer m.snaps.gate.RUnlock()
	a := r.arms.Load()
	if a == nil {
		return false
	}
	word, bit := a.place(page)
	out, err := m.tryDisarm(r, a, word, bit)
	return out == isDisarmed && err == nil
}

// disarmTries is for how long the kernel may refuse to disarm a page that
// somebody waits for, or memory for one: a second.
const disarmTries = 1000

// insist repeats what lets a faulting thread go on. Where the kernel refuses for good,
// arming is given up altogether: the snapshots fail, and the guest runs on.
func (m *Memory) insist(ctx context.Context, r *Region, answer func() error) {
	for try := 0; ; try++ {
		err := answer()
		if err == nil || ctx.Err() != nil {
			return
		}
		if try == disarmTries {
			m.snaps.gate.Lock() // before the list: one that is being opened is in it then
			for _, s := range m.snaps.list() {
				s.failIf(fmt.Errorf("disarm a page of the region %v: %w", r, err))
			}
			_ = m.disarmRegion(r)
			m.snaps.gate.Unlock()
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// missing brings a page of a clone that its layer lacks, and wakes who waits: they
// find it in the layer.
func (w *watcher) missing(r *Region, page uint64) {
	for try := 0; ; try++ {
		from := r.lazy.Load()
		if from == nil {
			break
		}
		err := from.bring(w.ctx, page, 1)
		if err == nil {
			break
		}
		s := from.l.s
		if try == disarmTries {
			s.failIf(err)
		}
		if s.Err() != nil || w.ctx.Err() != nil {
			return // the clone's owner hears of it; nothing is put in the page's place (R12)
		}
		time.Sleep(time.Millisecond)
	}
	w.m.insist(w.ctx, r, func() error {
		if r.watched.Load() == 0 {
			return nil // as in fault; and the region may have gone
		}
		if from := r.lazy.Load(); from == nil {
			// The layer is complete, and has a hole there.
			if err := r.host.allocate(page); err != nil {
				return err
			}
		}
		return w.with(func(fd *uffd.FD) error { return fd.Wake(r.Slot()+addr.HVA(page*addr.PageSize), addr.PageSize) })
	})
}

// close ends the watcher. Everything is disarmed, and whoever waits goes on: the
// memory's regions are nobody's any more.
func (w *watcher) close() {
	w.m.snaps.gate.Lock()
	for _, r := range *w.regions.Load() {
		_ = w.unwatch(r) // or it goes with the mapping
		r.arms.Store(nil)
	}
	w.m.snaps.gate.Unlock()
	w.closeWaiters()
	w.wg.Wait()
	w.closeDescriptors()
}
