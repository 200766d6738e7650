package guestmem

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// Remap: length is the old one, off the new one, to where it is to go.

const sysMremap = 25

func doRemap(at addr.GVA, old, now uint64, flags RemapFlags, to addr.GVA) op {
	return op{kind: opRemap, at: at, length: old, off: now, flags: MapFlags(flags), to: to}
}

func softRemap(_ *opWorld, as *AddressSpace, o op) result {
	at, err := as.Remap(ctx, RemapOptions{Addr: o.at, OldLength: o.length, NewLength: o.off, Flags: RemapFlags(o.flags), NewAddr: o.to})
	if err != nil {
		at = 0
	}
	return result{errno: errnoOf(err), value: uint64(at)}
}

// kernelRemap keeps what the kernel does to the window: a source outside of it
// is nothing, and what ends beyond it is to end beyond all.
func kernelRemap(k *kernelView, o op) kernelCall {
	at, old, to := o.at, o.length, o.to
	oldPages, _ := addr.RoundUpLength(old)
	nowPages, _ := addr.RoundUpLength(o.off)
	switch end, ok := at.Add(old); {
	case at < k.window.Start || at >= k.window.End && at < k.end:
		at = k.end + addr.GVA(at.PageOffset())
	case ok && end > k.window.End && nowPages < oldPages:
		old += uint64(k.end - k.window.End)
	}
	if RemapFlags(o.flags)&remapTo != 0 {
		to = k.belowAll(k.beyond(to, o.off))
	}
	return kernelCall{code: callRemap, value: valueAddress,
		args: [7]uint64{sysMremap, uint64(at), old, o.off, uint64(o.flags), uint64(to)}}
}

func drawRemap(g *generator, o *op) {
	o.at, o.length, o.off = g.page(), g.length(), g.length()
	if n := len(g.areas); n > 0 && g.intn(2) == 0 {
		a := g.areas[g.intn(n)]
		o.at = a.Start + addr.GVA(g.intn(int(min(a.Len()/page, 4))))*page
		o.length = min(uint64(a.End-o.at), 64*page)
		if g.intn(4) == 0 {
			o.length = uint64(1+g.intn(int(o.length/page))) * page
		}
	}
	if g.intn(16) == 0 {
		o.length = 0
	}
	o.flags = MapFlags([...]RemapFlags{0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 3, 5, 7, 7}[g.intn(14)])
	if flags := RemapFlags(o.flags); flags&RemapDontUnmap != 0 || flags&RemapFixed != 0 && g.intn(2) == 0 {
		o.off = o.length
	}
	o.to = g.page()
	if g.odd() {
		switch g.intn(7) {
		case 0:
			o.at += addr.GVA(1 + g.intn(int(page)-1))
		case 1:
			o.length = g.oddLength(o.at)
		case 2:
			o.off = g.oddLength(o.to)
		case 3:
			o.at = g.outside()
		case 4:
			o.to = g.outside()
		case 5:
			o.flags = MapFlags(g.intn(16))
		case 6:
			o.to += addr.GVA(1 + g.intn(int(page)-1))
		}
	}
	*o = remapWithin(g.window, *o)
}

// remapWithin keeps an operation to what can be compared: what several areas are
// moved from ends in the window, a target below it is short, and nothing grows
// beyond all memory, nor is as much cut off by RemapFixed, for which Linux 6.17 and
// later ask for that much.
func remapWithin(window addr.Range, o op) op {
	if o.off >= mostHeap && o.off < 1<<47 {
		o.off = 5 * page
	}
	if RemapFlags(o.flags)&RemapFixed != 0 && o.length >= mostHeap && o.length < 1<<47 {
		o.length = 5 * page
	}
	now, _ := addr.RoundUpLength(o.off)
	old, _ := addr.RoundUpLength(o.length)
	if RemapFlags(o.flags)&remapTo == 0 && o.at.RoundDown()+addr.GVA(now) == window.End+page {
		o.off -= page // there is a hole in the kernel
	}
	end, ok := o.at.Add(old)
	if target := o.to.RoundDown(); !window.Contains(o.at) && ok && o.at < target+addr.GVA(now) && target < end {
		o.to = window.Start + addr.GVA(window.Len()/2).RoundDown() // the kernel is asked for another source
	}
	if RemapFlags(o.flags)&RemapFixed != 0 && old == now && window.Contains(o.at) && (!ok || end > window.End) {
		o.length = uint64(window.End - o.at.RoundDown())
		o.off = o.length
	}
	if RemapFlags(o.flags)&remapTo != 0 && o.to < window.Start {
		if RemapFlags(o.flags)&RemapFixed == 0 {
			o.to = 0
		} else if o.to = window.Start - page; o.off > 0 {
			o.off = page
		}
	}
	return o
}

// asksForMerging reports whether the answer to an operation may depend on that.
func asksForMerging(o op, as *AddressSpace) bool {
	switch o.kind {
	case opRemap:
		return true
	case opProtect:
		return o.prot&ProtGrowsDown != 0 || o.prot&ProtWrite != 0 && as != nil && (as.Limits().MaxData != 0 || as.guarded)
	case opAdvise:
		return as != nil && collapsesBlock(o, as)
	case opReadAt, opWriteAt, opLoad, opStore, opString, opLoad32, opStore32, opSwap32, opLoad64, opStore64, opSwap64,
		opTouch, opPopulate, opPin, opDevice:
		return as != nil && (nearStackLimit(o.at, as) || pinsChangingFile(o, as))
	}
	return false
}

// nearStackLimit reports whether at is below a stack, about as far as one grows.
func nearStackLimit(at addr.GVA, as *AddressSpace) (near bool) {
	if !as.stacks.Load() {
		return false
	}
	as.tree.Snapshot().Ascend(at, func(a *vmarea.Area) bool {
		near = a.Flags&vmarea.GrowsDown != 0 && uint64(a.End-at) > DefaultMaxStack-1<<20 && a.Start > at
		return false
	})
	return near
}

// mergedOtherwise reports whether the answer to an operation depends on where
// neighbours have merged that nothing visible separates, and the kernel has
// merged others than this side (D-merging).
func mergedOtherwise(o op, kernel, here addr.Range) bool {
	switch {
	case o.kind == opProtect:
		return o.prot&ProtGrowsDown != 0 && kernel.Start != here.Start
	case o.kind != opRemap:
		return kernel.End != here.End
	case !kernel.Contains(o.at) || !here.Contains(o.at):
	default:
		flags := RemapFlags(o.flags)
		old, _ := addr.RoundUpLength(o.length)
		now, _ := addr.RoundUpLength(o.off)
		switch {
		case flags&RemapDontUnmap != 0:
			return kernel != here
		case now <= old && flags&remapTo == 0, now == old && flags&RemapFixed != 0:
			return false
		}
		k, h := uint64(kernel.End-o.at), uint64(here.End-o.at)
		need := min(old, now)
		return (need > k) != (need > h) || (old == k) != (old == h)
	}
	return false
}

// steppedOtherwise reports whether an operation that is refused midway for a limit
// gets further on one side, because the kernel takes in two steps what is one area
// here, or the other way round (D-merging).
func steppedOtherwise(o op, as *AddressSpace, lines []addr.Range) bool {
	var here []addr.Range
	as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool { here = append(here, a.Range); return true })
	switch {
	case o.kind == opProtect && o.prot&ProtWrite != 0:
		return becomesData(o, as, lines) != becomesData(o, as, here)
	case o.kind == opRemap && RemapFlags(o.flags)&RemapDontUnmap != 0:
		in := func(r addr.Range) bool {
			return r.Overlaps(addr.Range{Start: o.at, End: o.at + addr.GVA(o.length)})
		}
		limited := as.Limits().MaxData != 0 || as.Limits().MaxSpace != 0
		return limited && !slices.Equal(filtered(lines, in), filtered(here, in))
	}
	return false
}

func filtered(list []addr.Range, keep func(addr.Range) bool) []addr.Range {
	return slices.DeleteFunc(slices.Clone(list), func(r addr.Range) bool { return !keep(r) })
}

// becomesData returns how far Protect gets that makes areas writable: to the first of
// the steps that holds more than RLIMIT_DATA leaves, or to where Protect ends for
// another reason.
func becomesData(o op, as *AddressSpace, steps []addr.Range) addr.GVA {
	var mapped, data uint64
	snap := as.tree.Snapshot()
	snap.Ascend(0, func(a *vmarea.Area) bool {
		mapped += a.Len()
		if a.IsData() {
			data += a.Len()
		}
		return true
	})
	r := protectedRange(o, steps)
	at := r.Start
	for _, s := range steps {
		part := s.Intersect(r)
		a := snap.Find(part.Start)
		switch {
		case part.IsEmpty():
			continue
		case part.Start > at, a == nil, a.Flags&vmarea.ReadOnly != 0:
			return at
		}
		at = part.End
		if a.Prot&ProtWrite != 0 {
			continue
		}
		now := *a.Traits
		if now.Prot |= ProtWrite; !now.IsData() {
			continue
		}
		if over(data, part.Len(), atMost(as.Limits().MaxData)) && !over(mapped, part.Len(), atMost(as.Limits().MaxSpace)) {
			return part.Start
		}
		data += part.Len()
	}
	return at
}

// protectedRange is what a Protect is of.
func protectedRange(o op, areas []addr.Range) addr.Range {
	length, _ := addr.RoundUpLength(o.length)
	r := addr.Range{Start: o.at, End: o.at + addr.GVA(length)}
	first := slices.IndexFunc(areas, func(a addr.Range) bool { return a.End > r.Start })
	if o.prot&ProtGrowsDown != 0 && first >= 0 {
		r.Start = min(r.Start, areas[first].Start)
	}
	return r
}

// fillsBehindGuard reports whether a Protect faults in what is locked, up to a guard
// or to where an area ends, and areas end elsewhere in the kernel (D-lock-guards).
func fillsBehindGuard(o op, as *AddressSpace, lines []addr.Range) bool {
	if o.kind != opProtect || o.prot&ProtWrite == 0 || !as.guarded {
		return false
	}
	r := protectedRange(o, lines)
	var here, there []addr.Range
	as.tree.Snapshot().Ascend(r.Start, func(a *vmarea.Area) bool {
		if part := a.Intersect(r); !part.IsEmpty() && a.Flags&(lockFlags|vmarea.Shared) == vmarea.Locked && a.Prot&ProtWrite == 0 {
			here = append(here, part)
			for _, l := range lines {
				if p := l.Intersect(part); !p.IsEmpty() {
					there = append(there, p)
				}
			}
		}
		return a.End < r.End
	})
	return !slices.Equal(here, there)
}

// unlocksBySource reports whether a remap leaves a locked area behind unlocked
// (D-lock-count).
func unlocksBySource(o op, as *AddressSpace) (found bool) {
	if o.kind != opRemap || RemapFlags(o.flags)&RemapDontUnmap == 0 {
		return false
	}
	as.tree.Snapshot().Ascend(o.at, func(a *vmarea.Area) bool {
		found = found || a.Flags&vmarea.Locked != 0 && a.Start < o.at+addr.GVA(o.length)
		return !found && a.End < o.at+addr.GVA(o.length)
	})
	return found
}

// movesLowStack reports whether a remap may move a stack from so low that the
// kernel, which goes by the page that it has come from, would no longer let it
// grow by all of its limit (D-moved-stack).
func movesLowStack(o op, as *AddressSpace) (found bool) {
	if o.kind != opRemap || RemapFlags(o.flags)&RemapMayMove == 0 {
		return false
	}
	as.tree.Snapshot().Ascend(o.at, func(a *vmarea.Area) bool {
		found = a.Flags&vmarea.GrowsDown != 0 && uint64(a.Start) < as.opts.MaxStack
		return !found && uint64(a.Start) < as.opts.MaxStack
	})
	return found
}

// growsPastLimit reports whether an access is to the hole below a stack that is as
// long as it may be here: it may be two areas in the kernel, of which the lower
// one still grows (D-merging, and the length of what has grown).
func growsPastLimit(o op, as *AddressSpace) (found bool) {
	if !o.kind.accesses() {
		return false
	}
	at, last := o.at.RoundDown(), o.at+addr.GVA(min(o.length, maxCopy))+8
	as.tree.Snapshot().Ascend(at, func(a *vmarea.Area) bool {
		found = a.Start > at && a.Flags&vmarea.GrowsDown != 0 && uint64(a.End-at) > as.opts.MaxStack
		at = a.End
		return !found && at < last
	})
	return found
}

// accesses reports whether an operation touches memory, and may let a stack grow.
func (k opKind) accesses() bool {
	switch k {
	case opReadAt, opWriteAt, opLoad, opStore, opDevice, opString, opTouch, opPopulate, opPin,
		opLoad32, opStore32, opSwap32, opLoad64, opStore64, opSwap64:
		return true
	}
	return false
}

// withoutMerging changes an operation that cannot be compared to one that does
// nothing.
func withoutMerging(o op) op {
	switch o.kind {
	case opProtect:
		o.prot &^= protGrows
		return o
	case opRemap:
	case opPin:
		return op{kind: opUnpin, space: o.space}
	default:
		return op{kind: opLoad, space: o.space, at: o.at} // of no byte
	}
	o.off, o.flags = o.length, 0
	return o
}
