package arena

import (
	"sync/atomic"
	"unsafe"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// EntriesPerTable is the number of 64-bit entries in a table frame.
const EntriesPerTable = addr.PageSize / 8

// Arena is the frames [first, first+n) behind one host mapping. Immutable.
type Arena struct {
	base  unsafe.Pointer
	first addr.PFN
	n     uint64

	start addr.GPA // of first
	size  uint64   // of n frames, in bytes
}

// New returns the arena over mem, whose first byte is that of frame first.
// The caller keeps mem mapped for as long as the arena is used.
func New(mem []byte, first addr.PFN) Arena {
	// SAFETY: mem outlives the arena by contract; the pointer keeps a Go slice
	// alive, and means nothing to the collector for a host mapping.
	n := uint64(len(mem)) / addr.PageSize
	return Arena{unsafe.Pointer(unsafe.SliceData(mem)), first, n, first.GPA(), n * addr.PageSize}
}

// First returns the number of the first frame.
func (a *Arena) First() addr.PFN { return a.first }

// Len returns the number of frames.
func (a *Arena) Len() uint64 { return a.n }

// Contains reports whether f is one of the arena's frames.
func (a *Arena) Contains(f addr.PFN) bool { return uint64(f-a.first) < a.n }

// ContainsAt reports whether the frame that begins at gpa is one of them.
func (a *Arena) ContainsAt(gpa addr.GPA) bool { return uint64(gpa-a.start) < a.size }

// Load returns entry i of table frame f, and 0 if f is outside.
//
// Preconditions: i < EntriesPerTable.
func (a *Arena) Load(f addr.PFN, i uint64) uint64 {
	k := uint64(f - a.first)
	if k >= a.n {
		return 0
	}
	// SAFETY: k < n, and i*8 stays inside the frame; entries are aligned.
	return atomic.LoadUint64((*uint64)(unsafe.Add(a.base, k<<addr.PageShift+(i%EntriesPerTable)*8)))
}

// LoadAt is Load for the table frame that begins at gpa. A page walk is four of
// these, each waiting for the one before: going from entry to entry without
// turning addresses into frame numbers and back takes a sixth off it.
//
// Preconditions: gpa is aligned to a page; i < EntriesPerTable.
func (a *Arena) LoadAt(gpa addr.GPA, i uint64) uint64 {
	off := uint64(gpa - a.start)
	if off >= a.size {
		return 0
	}
	// SAFETY: off < size, both multiples of a page, and i*8 stays inside the
	// page; entries are aligned.
	return atomic.LoadUint64((*uint64)(unsafe.Add(a.base, off+(i%EntriesPerTable)*8)))
}

// Entry returns a pointer to entry i of table frame f, nil if f is outside.
func (a *Arena) Entry(f addr.PFN, i uint64) *uint64 {
	k := uint64(f - a.first)
	if k >= a.n {
		return nil
	}
	// SAFETY: as in Load.
	return (*uint64)(unsafe.Add(a.base, k<<addr.PageShift+(i%EntriesPerTable)*8))
}

// Table returns the entries of table frame f; the caller uses atomics where
// others may look, and plain stores while nobody can. f must be inside.
func (a *Arena) Table(f addr.PFN) *[EntriesPerTable]uint64 {
	return (*[EntriesPerTable]uint64)(a.frame(f))
}

// Bytes returns the bytes of frame f. f must be inside.
func (a *Arena) Bytes(f addr.PFN) []byte {
	return (*[addr.PageSize]byte)(a.frame(f))[:]
}

// Word32 returns the aligned 32-bit word at offset off of frame f.
//
// Preconditions: f is inside; off+4 <= PageSize; off%4 == 0.
func (a *Arena) Word32(f addr.PFN, off uint64) *uint32 {
	// SAFETY: inside the frame by the precondition, masked all the same.
	return (*uint32)(unsafe.Add(a.frame(f), off&(addr.PageSize-4)))
}

// Word64 returns the aligned 64-bit word at offset off of frame f.
//
// Preconditions: f is inside; off+8 <= PageSize; off%8 == 0.
func (a *Arena) Word64(f addr.PFN, off uint64) *uint64 {
	// SAFETY: inside the frame by the precondition, masked all the same.
	return (*uint64)(unsafe.Add(a.frame(f), off&(addr.PageSize-8)))
}

// Zero clears frame f. Nobody else may be looking at it.
func (a *Arena) Zero(f addr.PFN) { clear(a.Bytes(f)) }

// Copy copies frame src to frame dst.
func (a *Arena) Copy(dst, src addr.PFN) { copy(a.Bytes(dst), a.Bytes(src)) }

func (a *Arena) frame(f addr.PFN) unsafe.Pointer {
	k := uint64(f - a.first)
	if k >= a.n {
		panic("arena: frame " + f.String() + " is outside")
	}
	// SAFETY: k < n.
	return unsafe.Add(a.base, k<<addr.PageShift)
}
