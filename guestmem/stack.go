package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// A stack is an area with MapGrowsDown: an access below it, with no area between,
// extends it down to there. Nothing is placed within its guard gap, and it does
// not grow to within the guard gap of something else that can be accessed, so
// that a program which runs past its stack does not write to that.

// stackGuardGap is Linux's default of stack_guard_gap.
const stackGuardGap = 1 << 20

// DefaultMaxStack is Linux's default of RLIMIT_STACK.
const DefaultMaxStack = 8 << 20

// startGap is where the guard gap below an area begins.
func startGap(a *vmarea.Area) addr.GVA {
	if a.Flags&vmarea.GrowsDown == 0 {
		return a.Start
	}
	return a.Start - min(a.Start, stackGuardGap)
}

// areaFrom returns the first area of the edited tree that ends above gva, nil if
// there is none.
func (c *changeUnderWay) areaFrom(gva addr.GVA) (found *vmarea.Area) {
	c.areas.Ascend(gva, func(a *vmarea.Area) bool { found = a; return false })
	return found
}

// growStack extends the stack above gva, which no area contains, down to it. It
// only adds, so it waits for nobody but other changes. It happens before anybody
// asks whether the area allows the access. Source: mm/mmap.c, expand_downwards.
//
// Errors: ErrNotMapped if nothing grows; ErrClosed.
func (as *AddressSpace) growStack(gva addr.GVA) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	grew, err := as.growStackLocked(c, gva.RoundDown())
	if !grew {
		c.abort()
		return err
	}
	c.publish()
	c.end()
	return nil
}

// growStackLocked reports whether it has edited the areas.
func (as *AddressSpace) growStackLocked(c *changeUnderWay, gva addr.GVA) (bool, error) {
	a := c.areaFrom(gva)
	switch {
	case a == nil || gva < as.bounds.Start:
		return false, ErrNotMapped
	case a.Start <= gva:
		return false, nil // somebody else was faster
	case a.Flags&vmarea.GrowsDown == 0:
		return false, ErrNotMapped
	case uint64(a.End-gva) > as.limits.Load().MaxStack:
		return false, fmt.Errorf("stack of more than %#x bytes: %w", as.limits.Load().MaxStack, ErrNotMapped)
	}
	if below := c.areaFrom(gva - min(gva, stackGuardGap)); below != a {
		// The guard gap is from the nearest one below.
		for next := below; next != a; next = c.areaFrom(next.End) {
			below = next
		}
		if below.Flags&vmarea.GrowsDown == 0 && below.Prot != ProtNone {
			return false, fmt.Errorf("%v is in the guard gap: %w", below.Range, ErrNotMapped)
		}
	}
	more := addr.Range{Start: gva, End: a.Start}
	if a.Flags&vmarea.Locked != 0 {
		if as.mayLock(c, more.Len()) != nil {
			return false, fmt.Errorf("more would be locked than may be: %w", ErrNotMapped)
		}
	}
	if err := as.mayExpand(c, more.Len(), a.Attr()); err != nil {
		return false, fmt.Errorf("%w: %v", ErrNotMapped, err)
	}
	c.areas.Insert(more, a.Attr())
	return true, nil
}

// searched is where a place is looked for.
type searched struct {
	within  addr.Range
	from    Placement
	hintEnd addr.GVA // a hint that ends above it is none
}

// The part of the first 2 GiB in which Map32Bit places, from its bottom.
const (
	low32Start addr.GVA = 0x40000000
	low32End   addr.GVA = 0x80000000
)

// whereFor says where Linux looks for a place. Source: arch/x86/kernel/sys_x86_64.c,
// find_start_end.
func (as *AddressSpace) whereFor(o MapOptions) searched {
	if o.Flags&Map32Bit != 0 {
		return searched{as.bounds.Intersect(addr.Range{Start: low32Start, End: low32End}), BottomUp, low32End}
	}
	return searched{as.bounds, as.opts.Placement, as.bounds.End}
}

// clearOfStack reports whether a free range lies outside of the guard gap of the
// stack above it, if there is one.
func (as *AddressSpace) clearOfStack(c *changeUnderWay, r addr.Range) bool {
	if !as.stacks.Load() {
		return true
	}
	next := c.areaFrom(r.End)
	return next == nil || r.End <= startGap(next)
}

// bottomUpBase is where Linux looks from when nothing was found from the top
// (TASK_UNMAPPED_BASE).
const bottomUpBase addr.GVA = (1<<47-addr.PageSize+2)/3&^(addr.PageSize-1) + addr.PageSize

// findGap finds a hole outside of guard gaps: where that of a stack is in the
// way, the search goes on below it, or above the stack. Source: mm/vma.c,
// unmapped_area_topdown and unmapped_area.
func (as *AddressSpace) findGap(c *changeUnderWay, length uint64, w searched) (addr.GVA, bool) {
	lowest, highest := w.within.Start, w.within.End
	for {
		at, ok := c.areas.FindGap(length, addr.PageSize, lowest, highest, w.from)
		r := addr.Range{Start: at, End: at + addr.GVA(length)}
		switch {
		case ok && as.clearOfStack(c, r):
			return at, true
		case !ok && (w.from == BottomUp || !as.stacks.Load()):
			return 0, false
		case !ok: // holes between areas in a guard gap were passed over
			w.from, lowest, highest = BottomUp, max(w.within.Start, bottomUpBase), w.within.End
		case w.from == BottomUp:
			lowest = c.areaFrom(r.End).End
		default:
			highest = startGap(c.areaFrom(r.End))
			if highest == 0 {
				// Linux goes on from the end of all addresses, and refuses what it finds
				// there: it does not look from the bottom then.
				return 0, false
			}
		}
	}
}
