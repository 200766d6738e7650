package uffd

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// EventKind says what an Event tells: the kernel's number for it. A kind that
// this package does not know is delivered all the same.
type EventKind uint8

const (
	// EventFault: somebody waits for a page. Addr, Flags and ThreadID are set.
	EventFault EventKind = 0x12
	// EventFork: the process has forked. Child serves the child's faults.
	EventFork EventKind = 0x13
	// EventRemap: Len bytes have moved From → To.
	EventRemap EventKind = 0x14
	// EventRemove: [Start, End) has been given back, and must read as zero
	// from now on.
	EventRemove EventKind = 0x15
	// EventUnmap: [Start, End) is no longer mapped.
	EventUnmap EventKind = 0x16
)

func (k EventKind) String() string {
	switch k {
	case EventFault:
		return "fault"
	case EventFork:
		return "fork"
	case EventRemap:
		return "remap"
	case EventRemove:
		return "remove"
	case EventUnmap:
		return "unmap"
	default:
		return fmt.Sprintf("unknown event %#x", uint8(k))
	}
}

// FaultFlags say what a fault is about.
type FaultFlags uint64

const (
	// FaultWrite: the page is wanted for writing. Under KVM a guest's read of
	// shared memory may say so too.
	FaultWrite FaultFlags = 1 << iota
	// FaultWP: the page is there and armed.
	FaultWP
	// FaultMinor: the page is in the page cache.
	FaultMinor
)

// String lists the flags; a read fault on a page that is not there has none.
func (f FaultFlags) String() string {
	return setString(uint64(f), nameIn("write", "wp", "minor"))
}

// An Event is one message of a userfaultfd. Fields that its Kind does not name
// are zero.
type Event struct {
	Kind EventKind

	// EventFault. Addr is exact with FeatureExactAddress, else the start of
	// the page. ThreadID, with FeatureThreadID, is the faulting thread as seen
	// from the namespace of who opened the descriptor.
	Addr     addr.HVA
	Flags    FaultFlags
	ThreadID uint32

	// EventFork. Child belongs to who reads the event, who closes it.
	Child *FD

	// EventRemap.
	From, To addr.HVA
	Len      uint64

	// EventRemove, EventUnmap.
	Start, End addr.HVA

	// Raw is the argument of an event of unknown kind.
	Raw [3]uint64
}

// Page returns the start of the page of the fault.
//
// pageSize is a power of two.
func (e *Event) Page(pageSize uint64) addr.HVA { return e.Addr &^ addr.HVA(pageSize-1) }

// String says what happened, for logs.
func (e *Event) String() string {
	switch e.Kind {
	case EventFault:
		return fmt.Sprintf("fault at %v (%v) of thread %d", e.Addr, e.Flags, e.ThreadID)
	case EventFork:
		return "fork"
	case EventRemap:
		return fmt.Sprintf("remap of %#x bytes %v → %v", e.Len, e.From, e.To)
	case EventRemove, EventUnmap:
		return fmt.Sprintf("%v [%v, %v)", e.Kind, e.Start, e.End)
	default:
		return fmt.Sprintf("%v %#x", e.Kind, e.Raw)
	}
}
