package guestmem

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/sys"
)

// snapshots is what a memory knows of those that were taken of it.
type snapshots struct {
	// gate is held shared from the claim of a page to its release, and exclusively
	// while a snapshot opens or arming ends: that is the grace period of handlers and
	// sweeps, as BarrierAll is that of Go's sections. Who holds it waits for nobody
	// but the kernel. It is taken in no section.
	gate sync.RWMutex

	open atomic.Pointer[[]*Snapshot] // those that may lack pages; written under mu
	mu   sync.Mutex                  // inside the gate
	kept int                         // snapshots that want armed pages to stay so; mu

	age *interval // the last one; gate held exclusively

	watch  atomic.Pointer[watcher] // the memory's own userfaultfd; set once, under Memory.layout
	clones sync.WaitGroup          // what waits for a snapshot that this memory is a clone of
	ending atomic.Pointer[context.CancelFunc]
}

// Points where tests let the kernel refuse.
var (
	atUserfaultfd = inject.New("snapshot: userfaultfd")
	atRegister    = inject.New("snapshot: userfaultfd: register")
	atUnregister  = inject.New("snapshot: userfaultfd: unregister")
	atArm         = inject.New("snapshot: userfaultfd: arm")
	atDisarm      = inject.New("snapshot: userfaultfd: disarm")
)

func (p *snapshots) list() []*Snapshot {
	if l := p.open.Load(); l != nil {
		return *l
	}
	return nil
}

func (p *snapshots) add(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := append(slices.Clone(p.list()), s)
	p.open.Store(&l)
}

func (p *snapshots) remove(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := slices.DeleteFunc(slices.Clone(p.list()), func(x *Snapshot) bool { return x == s })
	p.open.Store(&l)
}

// settle returns once those have ended who may have found a snapshot in the list that
// is not there any more: they hold the gate.
func (p *snapshots) settle() {
	p.gate.Lock()
	defer p.gate.Unlock()
}

// needed is ErrBusy if an open snapshot lacks pages of r.
func (p *snapshots) needed(r *Region) error {
	for _, s := range p.list() {
		if l := s.byHome[r]; l != nil && s.needs.Load() && l.left.Load() > 0 {
			return fmt.Errorf("an open snapshot lacks %d pages of the region %v: %w", l.left.Load(), r, ErrBusy)
		}
	}
	return nil
}

// pieceBytes is what is read and copied at a time.
const pieceBytes = 128 << 10

var pieces = sync.Pool{New: func() any { b := make([]byte, pieceBytes); return &b }}

// save copies pages [first, first+n) of r to every open snapshot that lacks them.
// A snapshot that cannot take them has failed, and the guest runs on.
//
// Preconditions: the pages are claimed by the caller, who holds the gate.
func (m *Memory) save(r *Region, first, n uint64) {
	open := m.snaps.list()
	for ; n > 0; first, n = first+min(n, pieceBytes/addr.PageSize), n-min(n, pieceBytes/addr.PageSize) {
		k := min(n, pieceBytes/addr.PageSize)
		var p *[]byte
		var err error
		for _, s := range open {
			l := s.byHome[r]
			if l == nil || !s.needs.Load() || l.has.hasAll(first, k) {
				continue
			}
			if p == nil {
				p = pieces.Get().(*[]byte)
				err = r.readHost(first, (*p)[:k*addr.PageSize])
			}
			if err == nil {
				s.failIf(l.put(first, (*p)[:k*addr.PageSize]))
			} else {
				s.failIf(fmt.Errorf("read the region %v: %w", r, err))
			}
		}
		if p != nil {
			pieces.Put(p)
		}
	}
}

// readHost reads pages by a system call: it touches nothing that could be absent
// or lost, and fills no hole of a memfd.
func (r *Region) readHost(first uint64, p []byte) error {
	if r.isOwnMemfd() {
		return sys.ReadFile(r.host.file, p, r.host.offset+first*addr.PageSize)
	}
	src := hostPages(r.host.slot, first, uint64(len(p))/addr.PageSize)
	for done := 0; done < len(p); {
		k, err := sys.CopyOut(p[done:], src[done:])
		if err != nil {
			return fmt.Errorf("%w: %w", r.lost(first+uint64(done)/addr.PageSize), err)
		}
		done += k
	}
	return r.stillWhole()
}

// disarmPage returns once the page was copied where it is lacked, and disarmed. One
// that is not armed is disarmed again, for who may wait for it.
func (m *Memory) disarmPage(ctx context.Context, r *Region, page uint64) error {
	for try := 0; ; try++ {
		m.snaps.gate.RLock()
		a := r.arms.Load()
		if a == nil {
			m.snaps.gate.RUnlock()
			return nil
		}
		word, bit := a.place(page)
		out, err := m.tryDisarm(r, a, word, bit)
		if by := m.armerOf(r); out == wasNotArmed && by != nil {
			// Its fault was read before it was disarmed, or a window that failed
			// had armed it.
			err = by.Disarm(r, page/a.unit*a.unit, a.unit)
		}
		m.snaps.gate.RUnlock()
		if out != isClaimed || err != nil {
			return err
		}
		if err := backOff(ctx, try); err != nil {
			return err
		}
	}
}

// disarming is how the attempt to disarm a unit has ended.
type disarming int

const (
	isDisarmed  disarming = iota // by this attempt
	wasNotArmed                  // at all
	isClaimed                    // by somebody else
)

// tryDisarm copies and disarms one unit, if it is armed.
//
// Preconditions: the gate is held.
func (m *Memory) tryDisarm(r *Region, a *armMap, word uint64, bit uint32) (disarming, error) {
	if a.claim(word, bit) == 0 {
		if a.armed(word)&bit == 0 {
			return wasNotArmed, nil
		}
		return isClaimed, nil
	}
	var err error
	a.eachUnitRun(word, bit, func(first, n uint64) {
		m.save(r, first, n)
		afterSave(r, first)
		err = m.armerOf(r).Disarm(r, first, n)
	})
	if err != nil {
		a.unclaim(word, bit) // it is armed, or at worst not, and everybody has it
		return isDisarmed, err
	}
	a.disarmed(word, bit)
	return isDisarmed, nil
}

// saveHook runs between the copy of a claimed page and its release. Only tests set
// it.
var saveHook atomic.Pointer[func(r *Region, page uint64)]

func afterSave(r *Region, page uint64) {
	if hook := saveHook.Load(); hook != nil {
		(*hook)(r, page)
	}
}

// disarmRange has the pages [first, first+n) copied and disarmed.
func (r *Region) disarmRange(ctx context.Context, first, n uint64) error {
	a := r.arms.Load()
	if a == nil {
		return nil
	}
	for word, mask := range a.within(first, n) {
		for try := 0; a.armed(word)&mask != 0; {
			bit := a.armed(word) & mask
			bit &= -bit
			r.mem.snaps.gate.RLock()
			out, err := r.mem.tryDisarm(r, a, word, bit)
			r.mem.snaps.gate.RUnlock()
			if err != nil {
				return fmt.Errorf("disarm a page of the region %v: %w", r, err)
			}
			if out != isClaimed {
				try = 0
				continue
			}
			if err := backOff(ctx, try); err != nil {
				return err
			}
			try++
		}
	}
	return nil
}

// askSnapshots has the pages that a clone lacks brought, and armed ones disarmed if
// they are to be stored to. It returns true if it did something, after which
// the caller looks again.
func (r *Region) askSnapshots(ctx context.Context, first, n uint64, access Access) (bool, error) {
	if from := r.lazy.Load(); from != nil {
		if err := from.bring(ctx, first, n); err != nil {
			return false, err
		}
	}
	if access != Write || !r.anyArmed(first, n) {
		return false, nil
	}
	return true, r.disarmRange(ctx, first, n)
}

// beforeLoss has what snapshots lack of the pages copied before they are
// discarded.
//
// Preconditions: layout is held, so that no snapshot opens meanwhile.
func (m *Memory) beforeLoss(r *Region, first, n uint64) error {
	if !r.anyArmed(first, n) {
		return nil
	}
	if m.snaps.needed(r) != nil {
		if err := r.fetchAll(context.Background(), first, n); err != nil {
			return err
		}
	}
	return r.disarmRange(context.Background(), first, n)
}

// fetchAll has pages brought that are not there yet.
func (r *Region) fetchAll(ctx context.Context, first, n uint64) error {
	if from := r.lazy.Load(); from != nil {
		return from.bring(ctx, first, n)
	}
	s := r.server.Load()
	if s == nil {
		return nil
	}
	for asked := 0; asked < maxAsked; asked++ {
		if again, err := r.ask(ctx, s, first, n, Read); err != nil || !again {
			return err
		}
	}
	return fmt.Errorf("the fault server of region %v was asked %d times for page %#x: %w", r, maxAsked, first, ErrBus)
}

// backOff waits a little for somebody's claim. They last for a copy: microseconds.
func backOff(ctx context.Context, try int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if try < 16 {
		runtime.Gosched()
		return nil
	}
	time.Sleep(min(time.Duration(try)*2*time.Microsecond, 250*time.Microsecond))
	return nil
}
