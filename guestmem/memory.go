package guestmem

import (
	"fmt"
	"runtime"
	"sync"

	"go.uber.org/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/pagetable"
)

// MemoryOptions say how much memory a guest gets and how the host backs it.
type MemoryOptions struct {
	// Size is the guest-physical memory in bytes, a multiple of 4 KiB up to
	// MaxMemory: the cap on what guests can use. The host backs it as it is used.
	Size uint64
	// Base is the guest-physical address of the first byte, page-aligned.
	Base addr.GPA
	// Grow is how many bytes the host is asked to back at a time; 2 MiB if 0.
	Grow uint64
	// KeepFree is how many free bytes stay backed; what is above it is given
	// back to the host in batches. 64 MiB if 0.
	KeepFree uint64
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

// Memory is guest-physical memory: frames that address spaces are made of.
// Safe for concurrent use.
type Memory struct {
	region *hostRegion // immutable
	arena  arena.Arena // immutable
	pool   *cow.Pool
	domain *epoch.Domain
	door   door
	size   uint64 // immutable
	around int    // pages a fault may install; fixed while there are spaces

	windows sync.Mutex // one window at a time; inside the change locks

	// view is written under mu while there is no address space, and read
	// freely while there is one.
	view View

	mu         sync.Mutex
	spaces     map[epoch.Space]*AddressSpace // open ones; mu
	ids        []epoch.Space                 // to be used again; mu
	lastID     epoch.Space                   // mu
	supervisor [256]pagetable.Entry          // upper half of every root; mu, fixed while there are spaces
	objects    map[*Object]struct{}          // open ones; mu
	orphans    map[*pinSet]struct{}          // pins that outlived their space; mu
	closed     bool                          // mu

	privileged       frameSet
	supervisorFrames atomic.Uint64
	tables           atomic.Uint64
	quarantined      atomic.Uint64
	objectPages      atomic.Uint64
	forks            atomic.Uint64
}

// NewMemory reserves guest-physical memory: one region over a sealed memfd,
// mapped twice (see Region.Slot). Nothing of it is backed yet.
//
// Errors: ErrInvalid; the errno of memfd_create or mmap; ErrNotSupported where
// the system has no memfd or the architecture is not amd64. Linux 3.17.
func NewMemory(o MemoryOptions) (*Memory, error) {
	const op = "new memory"
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
		return nil, opError(op, addr.Range{}, fmt.Errorf("x86-64 page tables on %s: %w", runtime.GOARCH, ErrNotSupported))
	}
	if _, ok := o.Base.Add(o.Size); !ok || o.Size == 0 || o.Size%addr.PageSize != 0 || uint64(o.Base)%addr.PageSize != 0 || uint64(o.Base)+o.Size > 1<<52 {
		return nil, opError(op, addr.Range{}, fmt.Errorf("size %#x at %v is not whole pages below 2^52: %w", o.Size, o.Base, ErrInvalid))
	}
	if o.FaultAround < 0 || o.FaultAround > maxAround || o.FaultAround&(o.FaultAround-1) != 0 {
		return nil, opError(op, addr.Range{}, fmt.Errorf("fault-around of %d pages is not a power of two up to %d: %w", o.FaultAround, maxAround, ErrInvalid))
	}
	if o.Size > MaxMemory {
		return nil, opError(op, addr.Range{}, fmt.Errorf("size %#x is above %#x: %w", o.Size, uint64(MaxMemory), ErrNoMemory))
	}
	r, err := newHostRegion(o.Name, o.Base, o.Size)
	if err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	m := &Memory{
		region:  r,
		arena:   arena.New(r.alias, o.Base.PFN()),
		size:    o.Size,
		lastID:  noSpace,
		orphans: make(map[*pinSet]struct{}),
		around:  o.FaultAround,
		spaces:  make(map[epoch.Space]*AddressSpace),
		objects: make(map[*Object]struct{}),
	}
	store := cow.FrameStore(r)
	if storeHook != nil {
		store = storeHook(store)
	}
	m.pool = cow.NewPool(m.arena, store, 1, cow.Options{
		GrowFrames: growFrames(o.Grow),
		KeepFree:   o.KeepFree / addr.PageSize,
	})
	m.pool.OnFreeTable(m.freeTable)
	m.domain = epoch.New(func() any { return new(cow.Cache) }, m.reclaim)
	return m, nil
}

// storeHook puts something between the pool and the host. Only tests set it.
var storeHook func(cow.FrameStore) cow.FrameStore

func growFrames(bytes uint64) uint64 { return max(1, bytes/addr.PageSize) }

// Region returns the one region of the memory.
func (m *Memory) Region() Region {
	return Region{Base: m.region.base, Size: m.size, Slot: hvaOf(m.region.slot)}
}

// Close returns everything to the host.
//
// Errors: ErrBusy, and nothing is closed, if address spaces or objects are open,
// or pins held.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	if n := len(m.spaces); n > 0 {
		return opError("close memory", addr.Range{}, fmt.Errorf("%d address spaces are open: %w", n, ErrBusy))
	}
	if n, k := len(m.objects), len(m.orphans); n+k > 0 {
		return opError("close memory", addr.Range{}, fmt.Errorf("%d objects are open, and pins of %d closed address spaces held: %w", n, k, ErrBusy))
	}
	m.domain.Synchronize()
	m.closed = true
	return m.region.close()
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
