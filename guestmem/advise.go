package guestmem

import (
	"context"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// Advice is what Advise is told, numerically MADV_*.
type Advice int

// Advice. What is not explained is noted, or not even that: it changes nothing
// that a program can see but how areas merge.
const (
	AdviceNormal         Advice = 0
	AdviceRandom         Advice = 1
	AdviceSequential     Advice = 2
	AdviceWillNeed       Advice = 3
	AdviceDontNeed       Advice = 4  // Discard
	AdviceRemove         Advice = 9  // pages of shared memory are empty after, for all who map them
	AdviceFree           Advice = 8  // private anonymous pages may be dropped; here they are kept
	AdviceDontFork       Advice = 10 // absent in the children of Fork
	AdviceDoFork         Advice = 11
	AdviceMergeable      Advice = 12
	AdviceUnmergeable    Advice = 13
	AdviceHugePage       Advice = 14 // private anonymous memory may come 2 MiB at a time
	AdviceNoHugePage     Advice = 15
	AdviceDontDump       Advice = 16
	AdviceDoDump         Advice = 17
	AdviceWipeOnFork     Advice = 18 // empty in the children of Fork
	AdviceKeepOnFork     Advice = 19
	AdviceCold           Advice = 20
	AdvicePageOut        Advice = 21 // there is nowhere to page out to
	AdvicePopulateRead   Advice = 22 // fault in, as a read does
	AdvicePopulateWrite  Advice = 23
	AdviceDontNeedLocked Advice = 24 // AdviceDontNeed, of locked areas too
	AdviceCollapse       Advice = 25 // the pages of whole 2 MiB are copied into one block each

	AdviceGuardInstall Advice = 102 // accesses are ErrNotMapped from now on; pages are dropped
	AdviceGuardRemove  Advice = 103
)

// stickyAdvice is what stays with the areas that it is given for.
type stickyAdvice struct{ set, clear vmarea.Flags }

var stickyAdvices = map[Advice]stickyAdvice{
	AdviceNormal:      {0, vmarea.RandomRead | vmarea.SequentialRead},
	AdviceRandom:      {vmarea.RandomRead, vmarea.SequentialRead},
	AdviceSequential:  {vmarea.SequentialRead, vmarea.RandomRead},
	AdviceDontFork:    {vmarea.DontFork, 0},
	AdviceDoFork:      {0, vmarea.DontFork},
	AdviceMergeable:   {vmarea.Mergeable, 0},
	AdviceUnmergeable: {0, vmarea.Mergeable},
	AdviceHugePage:    {vmarea.HugePage, vmarea.NoHugePage},
	AdviceNoHugePage:  {vmarea.NoHugePage, vmarea.HugePage},
	AdviceDontDump:    {vmarea.DontDump, 0},
	AdviceDoDump:      {0, vmarea.DontDump},
	AdviceWipeOnFork:  {vmarea.WipeOnFork, 0},
	AdviceKeepOnFork:  {0, vmarea.WipeOnFork},
}

// Advise says what is to come of [start, start+length), as madvise(2) does.
// Where part of the range is a hole, the mapped parts are done all the same. It
// waits for the lookups in progress where it takes pages away, and ctx is for
// the faults of AdvicePopulateRead and AdvicePopulateWrite, which end with it.
//
// Errors: ErrInvalid (unknown advice, start not aligned, a range that wraps, all
// with nothing changed); with the areas below done: ErrInvalid for an area that
// cannot have the advice, ErrDenied (AdviceRemove of a file), EFBIG (of one, where offsets end), ErrAgain where a split would make too many areas; then
// ErrNoSpace (ENOMEM) if part of the range is a hole. Populating stops at the
// first page that cannot be had: ErrInvalid if its area does not allow the
// access, ErrNoSpace for a hole, else as Fault. AdviceCollapse goes on after a
// block that it cannot make, but for want of memory or beside a guard, to the end of
// an area, and then answers with the last one's error: ErrInvalid for one in which
// nothing is there, a guard, or an area that is not private anonymous memory, has
// AdviceNoHugePage, or no room for 2 MiB; ErrAgain for a pinned page; ErrNoMemory for
// no block. ErrNoMemory; ErrClosed.
// Source: madvise(2), mm/madvise.c.
func (as *AddressSpace) Advise(ctx context.Context, start addr.GVA, length uint64, advice Advice) error {
	r, err := checkAdvised(start, length, advice)
	if err == nil && length > 0 {
		err = as.advise(ctx, r, advice)
	}
	if err != nil {
		return opError("advise", r, err)
	}
	return nil
}

// checkAdvised checks what is checked before any area is looked at.
func checkAdvised(start addr.GVA, length uint64, advice Advice) (addr.Range, error) {
	n, ok := addr.RoundUpLength(length)
	r, ok2 := addr.RangeFrom(start, n)
	switch {
	case !advice.isKnown():
		return r, fmt.Errorf("unknown advice %d: %w", advice, ErrInvalid)
	case !start.IsAligned():
		return r, fmt.Errorf("start is not aligned: %w", ErrInvalid)
	case !ok, !ok2:
		return r, fmt.Errorf("length %#x wraps: %w", length, ErrInvalid)
	}
	return r, nil
}

func (v Advice) isKnown() bool {
	return v >= AdviceNormal && v <= AdviceDontNeed || v == AdviceFree || v == AdviceRemove || v >= AdviceDontFork && v <= AdviceCollapse ||
		v == AdviceGuardInstall || v == AdviceGuardRemove
}

func (as *AddressSpace) advise(ctx context.Context, r addr.Range, advice Advice) error {
	if sticky, ok := stickyAdvices[advice]; ok {
		return as.adviseSticky(r, advice, sticky)
	}
	switch advice {
	case AdviceDontNeed, AdviceDontNeedLocked:
		return as.discard(ctx, r, advice)
	case AdviceFree, AdviceRemove:
		if as.isMonitored() {
			return as.adviseMonitored(ctx, r, advice)
		}
		if advice == AdviceRemove {
			return as.removePages(r)
		}
	case AdviceGuardInstall:
		return as.installGuards(r)
	case AdviceGuardRemove:
		return as.removeGuards(r)
	case AdviceCollapse:
		return as.collapse(ctx, r)
	case AdvicePopulateRead:
		return as.populateAdvised(ctx, r, Read)
	case AdvicePopulateWrite:
		return as.populateAdvised(ctx, r, Write)
	}
	_, err := advisedHead(r, as.tree.Snapshot().Ascend, advice)
	return err
}

// refuses is the error of an area that cannot have an advice, nil if it can.
func (v Advice) refuses(a *vmarea.Area) error {
	if isDevice(a) {
		return v.refusesDevice(a)
	}
	locked := a.Flags&vmarea.Locked != 0
	anonymous := a.Backing == nil
	bad := false
	switch v {
	case AdviceDontNeed, AdviceCold, AdvicePageOut, AdviceGuardInstall:
		bad = locked
	case AdviceFree:
		bad = locked || !anonymous
	case AdviceWipeOnFork:
		bad = !anonymous
	case AdviceRemove:
		o, ok := a.Backing.(*Object)
		if bad = locked || !ok; !bad && (a.Flags&(vmarea.Shared|vmarea.ReadOnly) != vmarea.Shared || o.readOnly) {
			return fmt.Errorf("advice %d for %v: %w", v, a, ErrDenied)
		}
	}
	if bad {
		return fmt.Errorf("advice %d for %v: %w", v, a, ErrInvalid)
	}
	return nil
}

// refusesDevice is refuses for what Linux has as VM_IO and VM_PFNMAP.
func (v Advice) refusesDevice(a *vmarea.Area) error {
	switch v {
	case AdviceDontNeed, AdviceDontNeedLocked, AdviceFree, AdviceCold, AdvicePageOut, AdviceRemove, AdviceDoFork,
		AdviceDoDump, AdviceWipeOnFork, AdviceGuardInstall, AdviceGuardRemove:
		return fmt.Errorf("advice %d for %v, which is a device's: %w", v, a, ErrInvalid)
	}
	return nil
}

// advisedHead returns the part of r below the first area that refuses the advice,
// and what the call is to answer: that area's error, or that there is a hole.
func advisedHead(r addr.Range, ascend func(addr.GVA, func(*vmarea.Area) bool), advice Advice) (head addr.Range, err error) {
	var hole error
	head = r
	at := r.Start
	ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		if a.Start > at && hole == nil {
			hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
		}
		if err = advice.refuses(a); err != nil {
			head.End = max(a.Start, r.Start)
			return false
		}
		at = a.End
		return at < r.End
	})
	if err == nil && hole == nil && at < r.End {
		hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
	}
	if err == nil {
		err = hole
	}
	return head, err
}

// adviseSticky gives areas flags. It takes nothing away from a lookup, so that it
// marks nothing and waits for nobody.
func (as *AddressSpace) adviseSticky(r addr.Range, advice Advice, sticky stickyAdvice) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := advisedHead(r, c.areas.Ascend, advice)
	err = as.setFlags(c, head, sticky.set, sticky.clear)
	c.publish()
	c.end()
	if errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %v", ErrAgain, err)
	}
	return rest
}

// setFlags changes the flags of the areas in r one after the other, up to one
// whose split would make too many.
//
// Errors: ErrNoSpace, with the areas below it changed.
func (as *AddressSpace) setFlags(c *changeUnderWay, r addr.Range, set, clear vmarea.Flags) error {
	for at := r.Start; at < r.End; {
		var a *vmarea.Area
		c.areas.Ascend(at, func(b *vmarea.Area) bool { a = b; return false })
		if a == nil || a.Start >= r.End {
			return nil
		}
		part := a.Intersect(addr.Range{Start: at, End: r.End})
		at = part.End
		c.areas.SetFlags(part, set, clear)
		if n := c.areas.Len(); n > as.opts.MaxAreas {
			c.areas.SetFlags(part, a.Flags, ^a.Flags) // as it was, and merged as it was
			return fmt.Errorf("%d areas: %w", n, ErrNoSpace)
		}
	}
	return nil
}

// populateAdvised faults pages in, up to the first that cannot be had.
func (as *AddressSpace) populateAdvised(ctx context.Context, r addr.Range, access Access) error {
	a := as.borrow()
	defer a.giveBack()
	for gva := r.Start; gva < r.End; gva += addr.PageSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch area := as.tree.Snapshot().Find(gva); {
		case area == nil:
			return fmt.Errorf("%v is not mapped: %w", gva, ErrNoSpace)
		case isDevice(area), area.Prot&access == 0:
			return fmt.Errorf("%v does not allow it: %w", area, ErrInvalid)
		}
		if err := a.fault(ctx, gva, access); err != nil {
			if errors.Is(err, ErrPoison) {
				err = errBadMemory
			}
			return fmt.Errorf("populate %v: %w", gva, err)
		}
	}
	return nil
}
