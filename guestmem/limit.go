package guestmem

import (
	"fmt"
	"math"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// Limits are what an address space may have at most, as setrlimit(2) says it. A child
// of Fork begins with those of its parent. What is above a limit when that is set
// stays.
type Limits struct {
	// MaxStack is how large a stack grows, in bytes (RLIMIT_STACK); 8 MiB if 0.
	MaxStack uint64
	// MaxLocked is how many bytes are locked (RLIMIT_MEMLOCK); any number if 0,
	// none at all if negative.
	MaxLocked int64
	// MaxSpace is how many bytes are mapped (RLIMIT_AS); likewise.
	MaxSpace int64
	// MaxData is how many bytes are mapped privately and writable but in stacks, and
	// how far the heap of Brk reaches (RLIMIT_DATA); likewise. (Linux lets a soft
	// limit of 0 mean the hard one in mmap; who has both sees to that.)
	MaxData int64
}

// SetLimits sets the limits, for what is asked for from now on.
func (as *AddressSpace) SetLimits(l Limits) {
	if l.MaxStack == 0 {
		l.MaxStack = DefaultMaxStack
	}
	as.limits.Store(&l)
}

// Limits returns the limits of the moment.
func (as *AddressSpace) Limits() Limits { return *as.limits.Load() }

// atMost is a limit as a number.
func atMost(limit int64) uint64 {
	switch {
	case limit == 0:
		return math.MaxUint64
	case limit < 0:
		return 0
	}
	return uint64(limit)
}

// mayExpand checks whether length bytes more may be mapped, with attributes at.
// Source: mm/vma.c, may_expand_vm.
//
// Errors: ErrNoSpace.
func (as *AddressSpace) mayExpand(c *changeUnderWay, length uint64, at vmarea.Attr) error {
	l := as.limits.Load()
	n := c.areas.Totals()
	if most := atMost(l.MaxSpace); over(n.Mapped, length, most) {
		return fmt.Errorf("%#x bytes are mapped, %#x may be: %w", n.Mapped, most, ErrNoSpace)
	}
	if most := atMost(l.MaxData); at.IsData() && over(n.Data, length, most) {
		return fmt.Errorf("%#x bytes of data are mapped, %#x may be: %w", n.Data, most, ErrNoSpace)
	}
	return nil
}

// over compares whole pages.
func over(has, more, most uint64) bool { return has+more > most&^(addr.PageSize-1) }

// mapped returns how much of r is mapped.
func (c *changeUnderWay) mapped(r addr.Range) (n uint64) {
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		n += a.Intersect(r).Len()
		return a.End < r.End
	})
	return n
}

// mayBecomeWritable checks whether an area may, as far as part; data is how much
// counts as such by then, and is kept.
//
// Errors: ErrDenied, ErrNoSpace. Source: mm/mprotect.c.
func (as *AddressSpace) mayBecomeWritable(c *changeUnderWay, a *vmarea.Area, part addr.Range, data *uint64) error {
	if a.Flags&vmarea.ReadOnly != 0 {
		return fmt.Errorf("%v may only be read: %w", a, ErrDenied)
	}
	if a.Prot&ProtWrite != 0 {
		return nil
	}
	now := *a.Traits
	now.Prot |= ProtWrite
	if !now.IsData() {
		return nil
	}
	l := as.limits.Load()
	if most := atMost(l.MaxData); over(*data, part.Len(), most) && !over(c.areas.Totals().Mapped, part.Len(), atMost(l.MaxSpace)) {
		return fmt.Errorf("%#x bytes of data are mapped, %#x may be: %w", *data, most, ErrNoSpace)
	}
	*data += part.Len()
	return nil
}
