package guestmem

import (
	"os"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// Backing is what host memory a region is made of.
type Backing uint8

// Backings of regions.
const (
	// BackingMemfd: a sealed memfd, mapped twice: the slot for vCPUs, and the
	// alias for Go code.
	BackingMemfd Backing = iota
	// BackingAnonymous: one private mapping, which vCPUs and Go code share.
	BackingAnonymous
	// BackingHugetlb: a sealed memfd of 2 MiB huge pages, mapped twice. The
	// pages are set aside when the region is made.
	BackingHugetlb
	// BackingFile: a file, mapped shared, twice: stores reach the file.
	BackingFile
	// BackingFilePrivate: a file, mapped privately, once: stores do not.
	BackingFilePrivate
	// BackingForeign: a mapping that the embedder owns, and perhaps its
	// descriptor. Neither is ever unmapped or closed here.
	BackingForeign
	// BackingTemplate: a private mapping of a sealed template (Template.Clone).
	BackingTemplate
)

var backingNames = [...]string{"memfd", "anonymous", "hugetlb", "file", "private file", "foreign", "template"}

func (b Backing) String() string {
	if int(b) < len(backingNames) {
		return backingNames[b]
	}
	return "unknown backing"
}

// Region is a range of guest-physical memory with one host backing. It stays
// what it is for as long as it is part of its Memory; after RemoveRegion its
// addresses mean nothing. Safe for concurrent use.
type Region struct {
	mem      *Memory
	base     addr.GPA
	size     uint64
	pageSize uint64
	name     string
	backing  Backing
	readOnly bool
	advice   HugePages
	numa     NUMAPolicy
	host     hostMemory // immutable while the region is part of the memory

	look                      []byte  // where Go looks at it: the alias, or else the slot; immutable
	guarded                   bool    // look may lose pages to whoever owns what is behind it; immutable
	pooled                    bool    // its frames are the pool's; immutable
	readable, writable, dirty pageSet // atomic

	// pop is held for reading by who populates pages or copies by system
	// call, and for writing by who takes pages away: discards, arming, removal. It is
	// taken in no section. Of an embedder's only Remover.Remove is called under it.
	pop         sync.RWMutex
	gone        bool // not part of the memory any more; pop
	intercepted bool // somebody else watches the slot: Go goes by system calls; pop

	server   atomic.Pointer[faultServer]
	states   PageStates
	harvest  sync.Mutex // one CollectDirty at a time
	gathered gathering  // harvest

	pins    regionPins
	devices atomic.Int64 // objects over it

	arms    atomic.Pointer[armMap]    // what snapshots have armed; nil: nothing
	lazy    atomic.Pointer[cloneFrom] // what a clone's pages come from that its layer lacks
	watched atomic.Uint64             // uffd.Mode that the memory's own userfaultfd has the slot for
}

// hostMemory is the host side of a region.
type hostMemory struct {
	file   *os.File // nil: nothing but a mapping
	offset uint64
	slot   []byte // what vCPUs use
	alias  []byte // what Go code uses beside it; nil: there is none

	memfd     *sys.Memfd   // where file is a memfd of the region's own
	mappings  [][]byte     // those of the above that are the library's to unmap
	closeFile func() error // nil: the descriptor is not the library's
}

// Base returns the guest-physical address of the first byte.
func (r *Region) Base() addr.GPA { return r.base }

// Size returns the length in bytes.
func (r *Region) Size() uint64 { return r.size }

// End returns the guest-physical address after the last byte.
func (r *Region) End() addr.GPA { return r.base + addr.GPA(r.size) }

// Contains reports whether gpa lies in the region.
func (r *Region) Contains(gpa addr.GPA) bool { return uint64(gpa-r.base) < r.size }

// Name returns the name that the region was given, or that of its backing.
func (r *Region) Name() string { return r.name }

// Backing returns what the region is made of.
func (r *Region) Backing() Backing { return r.backing }

// ReadOnly reports whether guests may only read the region.
func (r *Region) ReadOnly() bool { return r.readOnly }

// PageSize returns the size of the host pages behind it: 4096, or 2 MiB for
// huge pages, of which only whole ones can be discarded.
func (r *Region) PageSize() uint64 { return r.pageSize }

// Slot returns where the region is mapped for memory slots and devices: the
// mapping that may be registered with userfaultfd (R10).
func (r *Region) Slot() addr.HVA { return hvaOf(r.host.slot) }

// Alias returns the second mapping, which Go code may touch where pages are
// known to be there while the slot's is registered. It returns false for what
// is mapped once: a private mapping, or the embedder's without a descriptor.
func (r *Region) Alias() (addr.HVA, bool) {
	if r.host.alias == nil {
		return 0, false
	}
	return hvaOf(r.host.alias), true
}

// FD returns the descriptor of what is mapped and the offset of the region's
// first byte in it, borrowed; false where there is none. A private mapping's
// stores are not in it.
func (r *Region) FD() (fd int, offset uint64, ok bool) {
	if r.host.file == nil {
		return -1, 0, false
	}
	return int(r.host.file.Fd()), r.host.offset, true
}

// Memory returns the memory that the region is, or was, part of.
func (r *Region) Memory() *Memory { return r.mem }

func (r *Region) nPages() uint64 { return r.size / addr.PageSize }

func (r *Region) pageOf(gpa addr.GPA) uint64 { return uint64(gpa-r.base) / addr.PageSize }

func (r *Region) gpaOf(page uint64) addr.GPA { return r.base + addr.GPA(page*addr.PageSize) }

func (r *Region) String() string { return r.name + " " + gpaRange(r.base, r.size) }

// init makes what a region keeps in the heap, once its host side is there.
func (r *Region) init() {
	if r.look = r.host.alias; r.look == nil {
		r.look = r.host.slot
	}
	n := r.nPages()
	r.readable, r.writable, r.dirty = newPageSet(n), newPageSet(n), newPageSet(n)
	r.states.init(n, PagePresent)
}
