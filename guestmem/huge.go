package guestmem

import (
	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Private anonymous memory can be mapped 2 MiB at a time: one leaf over a block of
// 512 frames, where the whole of an aligned 2 MiB lies in one area and nothing is
// there yet. It is a matter of speed alone: a leaf of 2 MiB is split as soon as a
// part of it is to differ, and where there is no block, faults install single pages.
//
//	install       at a fault, where advice or the space's policy says so; or by
//	              AdviceCollapse, which copies what is there
//	allow, take,  to the whole of it: the one entry; moved where it goes by whole
//	move          leaves, to where no table of leaves is
//	split         to a part of it: unmap, discard, protect, guards, remap, pins,
//	permissions   and a write of a page that a relative has too
//
// A fork shares 2 MiB leaves with the table that they are in. The first write on
// either side splits the one that it hits, and copies one frame (R6); once the
// relatives have gone, one is written in place, as a page is.

// HugeLeafPolicy says which private anonymous memory is mapped by leaves of 2 MiB.
type HugeLeafPolicy int

// Policies, as Linux's transparent_hugepage/enabled has them.
const (
	HugeLeavesAdvised HugeLeafPolicy = iota // what AdviceHugePage was given for
	HugeLeavesAlways                        // all that AdviceNoHugePage was not given for
	HugeLeavesNever                         // none, and AdviceCollapse is ErrInvalid
)

func hugeRange(gva addr.GVA) addr.Range {
	start := gva &^ (pagetable.HugeSpan - 1)
	return addr.Range{Start: start, End: start + pagetable.HugeSpan}
}

// mayBeHuge reports whether leaves of 2 MiB may come in an area, if asked for: not
// where a monitor is told of pages.
func (as *AddressSpace) mayBeHuge(area *vmarea.Area) bool {
	return area.Backing == nil && area.Watch == nil && area.Flags&(vmarea.Shared|vmarea.NoHugePage) == 0 && as.opts.HugeLeaves != HugeLeavesNever
}

// wantsHuge reports whether a fault at gva is to install 2 MiB, if they are bare.
func (as *AddressSpace) wantsHuge(area *vmarea.Area, gva addr.GVA) bool {
	return as.mayBeHuge(area) &&
		(as.opts.HugeLeaves == HugeLeavesAlways || area.Flags&vmarea.HugePage != 0) &&
		area.ContainsRange(hugeRange(gva))
}

// hugeLeaf is the leaf of a block of a private area that nobody else has.
func (as *AddressSpace) hugeLeaf(area *vmarea.Area, block addr.PFN) pagetable.Entry {
	if invariants.Enabled {
		for i := range addr.PFN(pagetable.HugeFrames) {
			as.mem.assertData(block + i)
		}
	}
	perm := permOf(area.Prot)
	if !as.mayWriteBlock(area, block) {
		perm &^= pagetable.Writable
	}
	return pagetable.HugeEntry(block, perm)
}

// mayWriteBlock asks the predicate for all of a block.
//
// Preconditions: the path to its leaf is the space's own.
func (as *AddressSpace) mayWriteBlock(area *vmarea.Area, block addr.PFN) bool {
	return as.mem.pool.MayWriteBlock(cow.Write{
		AreaMayWrite: area.Prot&ProtWrite != 0,
		OwnPath:      true,
		Frame:        block,
	})
}

// faultHuge attempts a fault on a page of a 2 MiB leaf.
func (as *AddressSpace) faultHuge(area *vmarea.Area, l pagetable.Leaf, at *attempt) outcome {
	e := l.Entry
	missing := permOf(area.Prot) &^ e & pagetable.User
	if at.access == Execute {
		missing |= e & pagetable.NoExec
	}
	if at.access == Write && !(e.Has(pagetable.Writable) && l.Owned) {
		missing |= pagetable.Writable
	}
	if missing == 0 {
		return resolved
	}
	return lackHuge
}

// zeroBlock clears a block that nobody has seen, a section's worth at a time.
func (m *Memory) zeroBlock(block addr.PFN) {
	const frames = sectionBytes / addr.PageSize
	for f := block; f < block+pagetable.HugeFrames; f += frames {
		m.pastDoor(func() {
			for i := range addr.PFN(frames) {
				m.stored(f + i)
				m.arena.Zero(f + i)
			}
		})
	}
}

// installBlock installs a 2 MiB leaf where nothing is. That there is no block, or
// no table for it, is no error: the attempt goes on with a page.
func (a Accessor) installBlock(at *attempt) {
	as, m := a.as, a.as.mem
	block, zero, err := m.allocateBlock()
	if err != nil {
		at.noBlock = true
		m.huge.fellBack.Inc()
		return
	}
	if !zero {
		m.zeroBlock(block)
	}
	installed := false
	plan := func() pagetable.PathPlan { return as.pt.PlanPath(at.gva, 2, true) }
	err = a.editAbove(at.gva, plan, func(area *vmarea.Area, spare *pagetable.Spare, gone *pagetable.Retired) {
		if !as.wantsHuge(area, at.gva) {
			return
		}
		as.pt.OwnPath(at.gva, 2, true, spare, gone)
		if installed = as.pt.InstallHuge(at.gva, as.hugeLeaf(area, block)); installed {
			a.h.Local().(*cow.Cache).Count.Zeroed.Add(pagetable.HugeFrames)
			m.huge.installed.Inc()
		}
	})
	if !installed {
		m.pool.DropBlock(block)
	}
	if err != nil {
		at.noBlock = true // the fault of a page finds out what there is
	}
}

// editHuge gives a 2 MiB leaf what a fault for access lacks: it allows it, where that
// can be for all of it, and else splits it, and the next attempt sees to the page.
func (a Accessor) editHuge(gva addr.GVA, access Access) error {
	as := a.as
	split := false
	return a.editAbove(gva, func() pagetable.PathPlan {
		l := as.pt.Find(gva)
		if !l.Huge {
			return pagetable.PathPlan{}
		}
		area := as.tree.Snapshot().Find(gva)
		split = area == nil || !area.ContainsRange(hugeRange(gva)) ||
			access == Write && (as.pt.WouldCopy(gva) || !as.mem.pool.ExclusiveBlock(l.Entry.Frame()))
		if split {
			return as.pt.PlanPath(gva, 1, false)
		}
		return as.pt.PlanPath(gva, 2, false)
	}, func(area *vmarea.Area, spare *pagetable.Spare, gone *pagetable.Retired) {
		if !as.pt.Find(gva).Huge {
			return
		}
		if split {
			as.pt.OwnPath(gva, 1, false, spare, gone)
			as.mem.huge.split.Inc()
			return
		}
		as.pt.OwnPath(gva, 2, false, spare, gone)
		if l := as.pt.Find(gva); l.Huge && l.Owned && area.ContainsRange(hugeRange(gva)) {
			as.pt.AllowHuge(gva, as.hugeGrant(area, l.Entry.Frame(), access))
		}
	})
}

// hugeGrant is what a fault for access may be given of a 2 MiB leaf.
func (as *AddressSpace) hugeGrant(area *vmarea.Area, block addr.PFN, access Access) pagetable.Entry {
	grant := permOf(area.Prot) & pagetable.User
	if access == Execute && area.Prot&ProtExec != 0 {
		grant |= pagetable.NoExec
	}
	if access == Write && as.mayWriteBlock(area, block) {
		grant |= pagetable.Writable
		as.mem.huge.reused.Inc()
	}
	return grant
}

// splitHuge splits the 2 MiB leaf at gva, if there is one.
func (a Accessor) splitHuge(gva addr.GVA) error {
	as := a.as
	a.h.Enter(as.id)
	huge := as.pt.Find(gva).Huge
	a.h.Exit()
	if !huge {
		return nil
	}
	return a.editAbove(gva, func() pagetable.PathPlan {
		return as.pt.PlanPath(gva, 1, false)
	}, func(_ *vmarea.Area, spare *pagetable.Spare, gone *pagetable.Retired) {
		if as.pt.Find(gva).Huge {
			as.pt.OwnPath(gva, 1, false, spare, gone)
			as.mem.huge.split.Inc()
		}
	})
}
