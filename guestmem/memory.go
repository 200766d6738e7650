package guestmem

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	counter "go.uber.org/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/pagetable"
)

// MemoryOptions say how much memory a guest gets and how the host backs it.
type MemoryOptions struct {
	// Size is the frame pool that address spaces are made of, in bytes, a
	// multiple of 4 KiB up to MaxMemory: the cap on what guests can use. The host
	// backs it as it is used. It is the first region of the memory. With 0 there
	// is none, no address spaces, and no region but those of AddRegion.
	Size uint64
	// Base is the guest-physical address of the first byte, page-aligned.
	Base addr.GPA
	// Grow is how many bytes the host is asked to back at a time; 2 MiB if 0.
	Grow uint64
	// KeepFree is how many free bytes stay backed; what is above it is given
	// back to the host in batches. 64 MiB if 0.
	KeepFree uint64
	// GrowAhead has the host back the next Grow bytes in the background when few
	// backed ones are left, so that faults need not wait for it.
	GrowAhead bool
	// FaultAround is how many pages a fault may install at a time, a power of
	// two up to 64; 1 for the one that faulted alone. 0 is the library's choice:
	// 16 where a view is attached, since vCPUs pay for each fault with an exit,
	// and 1 otherwise.
	FaultAround int
	// Name of the memfd, as the host shows it; "guestmm" if empty.
	Name string
}

// MaxMemory is the most that a Memory can have: 4 TiB, whose counts take 2 GiB
// of host address space.
const MaxMemory = 4 << 40

const (
	defaultGrow     = 2 << 20
	defaultKeepFree = 64 << 20
)

// Memory is guest-physical memory: regions, each with one host backing; in the
// first of them, where there is a frame pool, the frames that address spaces are
// made of. Safe for concurrent use.
type Memory struct {
	frames *Region     // of the pool; nil: there is none; immutable
	store  *poolStore  // of the pool; immutable
	arena  arena.Arena // over the pool's region; immutable
	pool   *cow.Pool   // nil: there is none
	domain *epoch.Domain
	door   door
	around int // pages a fault may install; fixed while there are spaces
	// hosted says that there is, or was, an object over a file of the host.
	hosted atomic.Bool
	// tracking says that the stores of address spaces count as dirty too.
	tracking atomic.Bool

	_ [64]byte // every copy loads what is above; what follows is written now and then

	// layout is held by who changes the regions, or who hears of them. Embedders'
	// listeners, sources and fillers are called under it.
	layout    sync.Mutex
	regions   atomic.Pointer[published]     // written under layout
	listeners []RegionListener              // layout
	sources   atomic.Pointer[[]DirtySource] // written under layout
	leftOver  []*hostMemory                 // of no region, and could not be unmapped; layout

	windows sync.Mutex // one window at a time; inside the change locks
	snaps   snapshots

	// view is written under mu while there is no address space, and read
	// freely while there is one.
	view View

	mu         sync.Mutex
	spaces     map[epoch.Space]*AddressSpace // open ones; mu
	ids        []epoch.Space                 // to be used again; mu
	lastID     epoch.Space                   // mu
	supervisor [256]pagetable.Entry          // upper half of every root; mu, fixed while there are spaces
	objects    map[*Object]struct{}          // open ones; mu
	ending     int                           // objects that give their frames back; mu
	orphans    map[*pinSet]struct{}          // pins that outlived their space; mu
	closed     bool                          // mu

	names nameTable // of areas

	hostedMu   sync.Mutex // above the domain's and the pool's
	hostedLeft []addr.PFN // frames that such an object had, and somebody has still; hostedMu

	privileged       frameSet
	supervisorFrames counter.Uint64
	tables           counter.Uint64
	quarantined      counter.Uint64
	objectPages      counter.Uint64
	forks            counter.Uint64
	monitorFaults    counter.Uint64
	monitorWaits     atomic.Int64 // who waits for monitors now: faults and changes
	huge             hugeCounters
}

// NewMemory reserves guest-physical memory: with a Size, a first region over a
// sealed memfd for the frames of address spaces, nothing of which is backed yet.
//
// Errors: ErrInvalid; the errno of memfd_create or mmap; ErrNotSupported where
// the system has no memfd or, with a Size, the architecture is not amd64.
// Linux 3.17.
func NewMemory(o MemoryOptions) (*Memory, error) {
	const op = "new memory"
	m := &Memory{
		lastID:  noSpace,
		orphans: make(map[*pinSet]struct{}),
		around:  o.FaultAround,
		spaces:  make(map[epoch.Space]*AddressSpace),
		objects: make(map[*Object]struct{}),
	}
	m.publish(nil)
	if o.Size != 0 {
		if err := m.newPool(&o); err != nil {
			return nil, opError(op, addr.Range{}, err)
		}
	} else if o.Base != 0 {
		return nil, opError(op, addr.Range{}, fmt.Errorf("base %v without a size: %w", o.Base, ErrInvalid))
	}
	m.domain = epoch.New(func() any { return new(cow.Cache) }, m.reclaim)
	return m, nil
}

// newPool makes the region of frames and the pool over it.
func (m *Memory) newPool(o *MemoryOptions) error {
	if o.Grow == 0 {
		o.Grow = defaultGrow
	}
	if o.KeepFree == 0 {
		o.KeepFree = defaultKeepFree
	}
	if o.Name == "" {
		o.Name = "guestmm"
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("x86-64 page tables on %s: %w", runtime.GOARCH, ErrNotSupported)
	}
	if err := checkPlace(o.Base, o.Size, addr.PageSize); err != nil {
		return err
	}
	if o.FaultAround < 0 || o.FaultAround > maxAround || o.FaultAround&(o.FaultAround-1) != 0 {
		return fmt.Errorf("fault-around of %d pages is not a power of two up to %d: %w", o.FaultAround, maxAround, ErrInvalid)
	}
	if o.Size > MaxMemory {
		return fmt.Errorf("size %#x is above %#x: %w", o.Size, uint64(MaxMemory), ErrNoMemory)
	}
	ro := RegionOptions{Name: o.Name, Base: o.Base, Size: o.Size}
	host, err := openHost(&ro)
	if err != nil {
		return errors.Join(err, host.close())
	}
	m.frames = newRegion(m, &ro, host)
	m.frames.pooled = true
	m.publish(regionTable{m.frames})
	m.store = &poolStore{region: m.frames}
	m.arena = arena.New(host.alias, o.Base.PFN())
	store := cow.FrameStore(m.store)
	if storeHook != nil {
		store = storeHook(store)
	}
	m.pool = cow.NewPool(m.arena, store, 1, cow.Options{
		GrowFrames: growFrames(o.Grow),
		KeepFree:   o.KeepFree / addr.PageSize,
		Ahead:      o.GrowAhead,
	})
	m.pool.OnFreeTable(m.freeTable)
	return nil
}

// storeHook puts something between the pool and the host. Only tests set it.
var storeHook func(cow.FrameStore) cow.FrameStore

func growFrames(bytes uint64) uint64 { return max(1, bytes/addr.PageSize) }

// Close returns everything to the host. Closing twice does nothing, but for what
// the first Close could not return.
//
// Errors: ErrBusy, and nothing is closed, if address spaces or objects are open,
// pins or slices held, or a listener attached, which may still use the regions;
// the errno of munmap or close, and the memory is closed.
func (m *Memory) Close() error {
	const op = "close memory"
	m.layout.Lock()
	defer m.layout.Unlock()
	t, err := m.beginClose()
	if err != nil {
		return opError(op, addr.Range{}, err)
	}
	m.publish(nil)
	m.domain.Synchronize()
	m.domain.BarrierAll()
	if m.pool != nil {
		m.pool.WaitAhead()
	}
	m.endSnapshots()
	if err := m.retire(t...); err != nil {
		return opError(op, addr.Range{}, err)
	}
	return nil
}

// beginClose closes the memory to new users, unless it has some, and returns the
// regions that it had.
func (m *Memory) beginClose() (regionTable, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil
	}
	if n := len(m.spaces); n > 0 {
		return nil, fmt.Errorf("%d address spaces are open: %w", n, ErrBusy)
	}
	if n, k := len(m.objects)+m.ending, len(m.orphans); n+k > 0 {
		return nil, fmt.Errorf("%d objects are open, and pins of %d closed address spaces held: %w", n, k, ErrBusy)
	}
	if n := len(m.listeners); n > 0 {
		return nil, fmt.Errorf("%d listeners of regions are attached: %w", n, ErrBusy)
	}
	t := m.table()
	for _, r := range t {
		if err := m.snaps.needed(r); err != nil {
			return nil, err
		}
	}
	if err := t.shutPins(); err != nil {
		return nil, err
	}
	m.closed = true
	return t, nil
}

// retire ends regions that nobody finds any more.
//
// Preconditions: layout is held.
func (m *Memory) retire(regions ...*Region) error {
	for _, r := range regions {
		r.end()
		m.leftOver = append(m.leftOver, &r.host)
	}
	return m.closeLeftOver()
}

// closeLeftOver gives back host memory that is no region's, and keeps what the
// host did not take back, for the next call or Close to try again.
func (m *Memory) closeLeftOver() error {
	var errs []error
	var left []*hostMemory
	for _, h := range m.leftOver {
		if err := h.close(); err != nil {
			errs = append(errs, err)
		}
		if len(h.mappings) > 0 {
			left = append(left, h)
		}
	}
	m.leftOver = left
	return errors.Join(errs...)
}

func (m *Memory) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// addSpace registers a space under a new id. If it has no page table yet, it
// gets one over root: with the view and the platform's half as they are at that
// moment, after which they stand.
//
// Errors: ErrClosed.
func (m *Memory) addSpace(as *AddressSpace, root addr.PFN) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if as.pt == nil {
		t := m.arena.Table(root)
		for i, e := range m.supervisor {
			t[len(t)/2+i] = uint64(e)
		}
		as.pt = m.newTable(root)
	}
	if n := len(m.ids); n > 0 {
		as.id, m.ids = m.ids[n-1], m.ids[:n-1]
	} else {
		m.lastID++
		as.id = m.lastID
	}
	m.spaces[as.id] = as
	return nil
}

// newTable returns the page table over a root.
func (m *Memory) newTable(root addr.PFN) *pagetable.Table {
	return pagetable.New(m.arena, m.pool, root, pagetable.Options{FreshPath: m.view != nil})
}

func (m *Memory) removeSpace(as *AddressSpace) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.spaces, as.id)
	m.ids = append(m.ids, as.id)
}
