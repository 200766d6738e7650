package vmarea

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// Prot is what an area allows; the bits are numerically those of PROT_*.
type Prot uint32

// The permissions of an area.
const (
	None  Prot = 0
	Read  Prot = 1
	Write Prot = 2
	Exec  Prot = 4
)

// String returns the permissions as /proc/PID/maps shows them: "rw-".
func (p Prot) String() string {
	b := [3]byte{'-', '-', '-'}
	for i, c := range [3]byte{'r', 'w', 'x'} {
		if p&(1<<i) != 0 {
			b[i] = c
		}
	}
	return string(b[:])
}

// Flags are labels of an area. vmarea gives them no meaning, but areas that
// differ in them do not merge.
type Flags uint32

// The labels of an area.
const (
	Shared Flags = 1 << iota // mapped MAP_SHARED
	Heap                     // grown by brk
	Stack                    // mapped as a stack
	VDSO                     // mapped by the platform

	// Advice that stays with an area, as in Linux's vm_flags.
	DontFork   // absent in a child
	WipeOnFork // empty in a child
	DontDump   // not part of a core dump
	RandomRead // no reading ahead
	SequentialRead
	HugePage
	NoHugePage
	Mergeable
	GrowsDown   // a fault below extends it
	Locked      // its pages are not given up
	LockOnFault // Locked, but pages are not faulted in ahead
	ReadOnly    // Shared, of a file that was not opened for writing: never writable
)

// Labels that are a number, for a table of the caller's: such as names of areas.
const (
	NumberShift       = 16
	NumberMask  Flags = 0xffff << NumberShift
)

// Listed are the labels whose areas a tree can list without a scan.
const Listed = DontFork | WipeOnFork | Locked

// Backing is what an area shows: a file, a shared object. Nil is anonymous
// memory. Backings are compared by ==, so implementations are pointers.
type Backing interface {
	// BackingName is the name to show in a list of areas.
	BackingName() string
}

// Attr is all that an area is, but for where it is.
type Attr struct {
	Prot    Prot
	Flags   Flags
	Backing Backing
	// Offset is the byte offset in Backing of the area's start. It is ignored,
	// and kept 0, where Backing is nil.
	Offset uint64
	// Watch says that somebody is to be told of what happens in the area; nil if
	// not. vmarea gives it no meaning, but areas that differ in it do not merge,
	// and those that have one are listed.
	Watch *Watch
}

// Traits are the attributes that areas have in common: see Attr.
type Traits struct {
	Prot    Prot
	Flags   Flags
	Backing Backing
	Watch   *Watch
}

func (at *Attr) traits() Traits { return Traits{at.Prot, at.Flags, at.Backing, at.Watch} }

// Watch is who is told, and of what: compared by ==, and immutable.
type Watch struct {
	Owner any
	Modes uint8
}

// Area is a range of addresses with the same attributes. It is immutable but
// for its lock sequence: a change replaces areas, it does not edit them.
// It is 48 bytes, since areas that are alike share their traits: 32 bytes more
// each, in one object, would be a third of all that an area takes. The garbage
// collector has it when the last tree and the last snapshot have let it go.
type Area struct {
	addr.Range        // immutable
	*Traits           // immutable, with what it points to; never nil
	Offset     uint64 // immutable: see Attr

	owner   treeID        // immutable: the tree whose sequence lockSeq belongs to
	readers readCount     // atomic; empty unless invariants.Enabled
	lockSeq atomic.Uint64 // stored by a change of the owner; the area is marked while it equals the owner's sequence
}

// Attr returns all that the area is, but for where it is.
func (a *Area) Attr() Attr { return Attr{a.Prot, a.Flags, a.Backing, a.Offset, a.Watch} }

// OffsetOf returns the byte offset in the backing of what gva shows; 0 where
// the area is anonymous. gva must lie in the area.
func (a *Area) OffsetOf(gva addr.GVA) uint64 { return a.offsetAt(gva) }

func (a *Area) String() string {
	s := fmt.Sprintf("%v %v", a.Range, a.Prot)
	if a.Backing != nil {
		s += fmt.Sprintf(" %s+%#x", a.Backing.BackingName(), a.Offset)
	}
	return s
}

func (a *Area) offsetAt(gva addr.GVA) uint64 {
	if a.Backing == nil {
		return 0
	}
	return a.Offset + uint64(gva-a.Start)
}

// piece is an area that is not made yet.
type piece struct {
	addr.Range
	*Traits
	Offset uint64
}

// part returns the piece of a that is r, which lies in a.
func (a *Area) part(r addr.Range) piece {
	p := piece{r, a.Traits, a.Offset}
	if !variant.SplitKeepsOffset {
		p.Offset = a.offsetAt(r.Start)
	}
	return p
}

// continues reports whether q carries on where p ends, with the same
// attributes and, if there is a backing, the next byte of it.
func (p *piece) continues(q *piece) bool {
	return p.End == q.Start &&
		(p.Traits == q.Traits || p.alike(q)) &&
		(p.Backing == nil || variant.MergeIgnoresOffset || p.Offset+p.Len() == q.Offset)
}

// alike reports whether p and q have the same traits.
func (p *piece) alike(q *piece) bool {
	a, b := *p.Traits, *q.Traits
	if variant.MergeIgnoresProt {
		a.Prot = b.Prot
	}
	return a == b
}

// is reports whether p is what a is.
func (p *piece) is(a *Area) bool {
	return p.Range == a.Range && p.Offset == a.Offset && (p.Traits == a.Traits || *p.Traits == *a.Traits)
}
