package guestmem

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
)

// hugePages is the torture of few pages in the midst of 4 MiB that come 2 MiB at a
// time, and are collapsed, advised, split, and moved in part; and where a monitor
// comes and goes: ranges are registered, armed and unregistered beside all else, and a
// goroutine reads its events and answers faults as nobody's memory would: with zeroes.
type hugePagesTorture struct {
	fewPages
	watches
}

// tortureHuge is all of it; the border of the two lies in the slots, or above those
// of few pages.
const (
	tortureHuge    addr.GVA = 0x40000000 - pagetable.HugeSpan
	tortureHugeLen          = 2 * hugeLen
)

func newHugePagesTorture(t *testing.T, m *Memory) *hugePagesTorture {
	x := &hugePagesTorture{fewPages: newFewPages(t, m)}
	as := x.family[0].as
	mapAt(t, as, tortureHuge, tortureHugeLen, rw) // over what is still empty
	mustDo(t, as.Advise(ctx, tortureHuge, tortureHugeLen, AdviceHugePage))
	x.watches.by = make(map[*kin]*watch)
	x.beforeRest = x.watches.acting.Lock
	x.afterRest = x.watches.acting.Unlock
	x.afterClose = x.watches.end
	return x
}

func (x *hugePagesTorture) step(k *kin, a Accessor, w *hand) (what int) {
	if w.rng.IntN(4) != 0 {
		return x.fewPages.step(k, a, w)
	}
	slot := x.hotSlot(w.rng)
	n := 1 + w.rng.IntN(fewSlots-slot)
	half := tortureHuge + addr.GVA(w.rng.IntN(2))*addr.GVA(hugeLen)
	var err error
	switch w.rng.IntN(8) {
	case 0:
		err = k.as.Advise(ctx, tortureHuge, tortureHugeLen, []Advice{AdviceHugePage, AdviceHugePage, AdviceNoHugePage}[w.rng.IntN(3)])
	case 1, 2:
		err = k.as.Advise(ctx, half, hugeLen, AdviceCollapse)
	case 3: // one area again, as far as it goes, for the next collapse
		err = k.layout.protect(k.as, 0, fewSlots, rw)
	case 4:
		err = k.layout.away(k.as, slot, n)
	default:
		err = x.watch(x.torture, k, addr.Range{Start: slotAt(slot), End: slotAt(slot + n)}, w.rng)
	}
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrAgain) {
		err = nil // not there, or pinned; or somebody else's
	}
	x.explain(didRemap, err)
	return didRemap
}

// watches are the monitors of a torture's spaces.
type watches struct {
	mu sync.Mutex
	by map[*kin]*watch

	// acting is held shared while an event is answered: whoever rests may count then.
	acting sync.RWMutex
}

type watch struct {
	mu     sync.Mutex // one operation at a time
	m      *Monitor   // nil: none for now
	cancel context.CancelFunc
	done   chan struct{}
}

// watch does something to the monitor of k, if nobody else does just now.
func (ws *watches) watch(x *torture, k *kin, r addr.Range, rng *rand.Rand) error {
	ws.mu.Lock()
	w := ws.by[k]
	if w == nil {
		w = new(watch)
		ws.by[k] = w
	}
	ws.mu.Unlock()
	if !w.mu.TryLock() {
		return nil
	}
	defer w.mu.Unlock()
	if w.m == nil {
		features := uffd.FeatureWPUnpopulated
		for _, f := range []uffd.Features{uffd.FeatureEventRemap, uffd.FeatureEventRemove, uffd.FeatureEventUnmap} {
			if rng.IntN(2) == 0 {
				features |= f
			}
		}
		m, err := k.as.NewMonitor(MonitorOptions{Features: features})
		if err != nil {
			return err
		}
		serve, cancel := context.WithCancel(ctx)
		w.m, w.cancel, w.done = m, cancel, make(chan struct{})
		go func() {
			defer close(w.done)
			ws.serve(serve, x, m)
		}()
	}
	var err error
	switch rng.IntN(8) {
	case 0, 1, 2:
		_, err = w.m.Register(r.Start, r.Len(), []uffd.Mode{uffd.Missing, uffd.WP, uffd.Missing | uffd.WP}[rng.IntN(3)])
	case 3, 4:
		err = w.m.WriteProtect(r.Start, r.Len(), uffd.Armed)
	case 5:
		err = w.m.WriteProtect(r.Start, r.Len(), 0)
	case 6:
		err = w.m.Unregister(r.Start, r.Len())
	case 7:
		err = w.close()
	}
	if errors.Is(err, ErrBusy) || errors.Is(err, errUnregistered) {
		return nil
	}
	return err
}

// serve reads events, one at a time, and answers faults, until the monitor ends.
func (ws *watches) serve(ctx context.Context, x *torture, m *Monitor) {
	var faults []MonitorEvent
	for {
		if len(faults) == 0 && m.Wait(ctx) != nil {
			return
		}
		var e [1]MonitorEvent
		n, err := m.Read(e[:])
		if err != nil {
			return
		}
		if n == 1 && e[0].Kind == uffd.EventFault {
			faults = append(faults, e[0])
		}
		left := faults[:0]
		for _, f := range faults {
			if !ws.answer(x, m, f) {
				left = append(left, f)
			}
		}
		if faults = left; len(faults) > 0 && n == 0 {
			time.Sleep(20 * time.Microsecond) // a change is about to post its event
		}
		if ctx.Err() != nil {
			return
		}
	}
}

var zeroPage [page]byte

// answer reports false if a change is under way that is to be read of first.
func (ws *watches) answer(x *torture, m *Monitor, e MonitorEvent) bool {
	ws.acting.RLock()
	defer ws.acting.RUnlock()
	gva := e.Addr.RoundDown()
	var err error
	if e.Flags&uffd.FaultWP != 0 {
		err = m.WriteProtect(gva, page, 0)
	} else {
		if _, err = m.Zero(gva, page, 0); errors.Is(err, ErrExists) {
			_, err = m.Copy(gva, zeroPage[:], 0) // as Linux: the mark of a page to be armed is in the way of Zero
		}
	}
	switch {
	case errors.Is(err, ErrAgain):
		return false
	case err == nil, errors.Is(err, ErrGone), errors.Is(err, ErrClosed):
	case errors.Is(err, ErrExists), errors.Is(err, ErrNoMemory), errors.Is(err, ErrInvalid), errors.Is(err, errUnregistered), errors.Is(err, ErrNoSpace), errors.Is(err, ErrNotMapped):
		_ = m.Wake(gva, page) // it is there, or not the monitor's any more
	default:
		x.fail("answer of %+v: %v", e, err)
	}
	return true
}

// close ends the monitor.
//
// Preconditions: w.mu is held, or nobody else has w.
func (w *watch) close() error {
	if w.m == nil {
		return nil
	}
	err := w.m.Close()
	w.cancel()
	<-w.done
	w.m = nil
	return err
}

// end is for a space that is closed.
func (ws *watches) end(k *kin) {
	ws.mu.Lock()
	w := ws.by[k]
	delete(ws.by, k)
	ws.mu.Unlock()
	if w != nil {
		_ = w.close()
	}
}

// Few pages, in memory of 2 MiB, under monitors.
func TestR1TortureOfHugeAndWatchedPages(t *testing.T) {
	x := newHugePagesTorture(t, newMemory(t, 24<<20))
	x.torture.run(9, x.step)
	if s := x.m.Stats(); (*soak || *tortureFor > 0) && (s.HugeInstalled+s.HugeCollapsed == 0 || s.HugeSplit == 0 || s.MonitorFaults == 0) {
		t.Errorf("something never happened: %+v", s)
	}
}

// The same where a view is told of all that is taken away.
func TestR8TortureOfHugeAndWatchedPages(t *testing.T) {
	m := newMemory(t, 24<<20)
	r := attachRecorder(t, m)
	x := newHugePagesTorture(t, m)
	x.torture.run(9, x.step)
	m.domain.Synchronize()
	r.Flush()
	r.settle(t)
}
