package guestmem

import (
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// Locks, residency and msync, on both sides.

const (
	sysMsync      = 26
	sysMincore    = 27
	sysMunlock    = 150
	sysMlockall   = 151
	sysMunlockall = 152
	sysMlock2     = 325
)

// clipTouched is clip for a range that need not be aligned.
func (k *kernelView) clipTouched(at addr.GVA, length uint64) uint64 {
	r, ok := touched(at, length)
	switch {
	case !ok || r.End <= k.window.End+page || at >= k.end:
		return length
	case at < k.window.End:
		return uint64(k.window.End + page - at)
	}
	return min(length, page-at.PageOffset())
}

func softLock(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Lock(ctx, o.at, o.length, LockMode(o.data)))}
}

// A lock of more than may be locked is refused whatever it is of.
func kernelLock(k *kernelView, o op) kernelCall {
	n := o.length
	if n < 16<<20 {
		n = k.clipTouched(o.at, n)
	}
	return kernelCall{code: callSyscall, args: [7]uint64{sysMlock2, uint64(o.at), n, o.data}}
}

func softUnlock(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Unlock(o.at, o.length))}
}

func kernelUnlock(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMunlock, uint64(o.at), k.clipTouched(o.at, o.length)}}
}

func softLockAll(_ *opWorld, as *AddressSpace, o op) result {
	if o.data == 0 {
		return result{errno: errnoOf(as.UnlockAll())}
	}
	return result{errno: errnoOf(as.LockAll(ctx, LockAllFlags(o.data)))}
}

func kernelLockAll(_ *kernelView, o op) kernelCall {
	if o.data == 0 {
		return kernelCall{code: callSyscall, args: [7]uint64{sysMunlockall}}
	}
	return kernelCall{code: callSyscall, args: [7]uint64{sysMlockall, o.data}}
}

// leafPages are the pages that a page table leads to.
type leafPages map[addr.GVA]bool

func (l leafPages) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }

func (l leafPages) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	for i := range pagetable.AppendFrames(nil, e) {
		l[gva+addr.GVA(i)*page] = true
	}
}

// softResident answers whether it failed. What pages are there is compared after
// each step anyway; that the answer says the same is asked here.
func softResident(_ *opWorld, as *AddressSpace, o op) result {
	vec := make([]bool, min(o.length/page+1, 1<<16))
	n, err := as.Resident(o.at, o.length, vec)
	there := leafPages{}
	as.pt.Visit(there)
	for i, got := range vec[:n] {
		at := o.at + addr.GVA(i)*page
		is := there[at]
		if a := as.tree.Snapshot().Find(at); a != nil && a.Backing != nil && a.OffsetOf(at)/page < a.Backing.(*Object).pages() {
			_, in := a.Backing.(*Object).page(a.OffsetOf(at) / page)
			is = is || in
		}
		if got != is || as.pt.Find(at).Entry.Has(pagetable.Present) && !got {
			return result{errno: syscall.ENOTRECOVERABLE}
		}
	}
	return result{errno: errnoOf(err)}
}

func kernelResident(k *kernelView, o op) kernelCall {
	at := k.beyond(o.at, o.length)
	if at == k.end {
		at += page // beyond, even without a length
	}
	return kernelCall{code: callSyscall, bufferArg: 3, bufferMapped: true,
		args: [7]uint64{sysMincore, uint64(at), o.length}}
}

func softSync(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Sync(o.at, o.length, SyncFlags(o.data)))}
}

func kernelSync(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysMsync, uint64(o.at), k.clip(o.at, o.length), o.data}}
}

// drawLock draws a range that need not be aligned, and how to lock it.
func drawLock(g *generator, o *op) {
	drawRange(g, o)
	if g.intn(3) == 0 {
		o.at += addr.GVA(g.intn(int(page)))
	}
	o.data = uint64(g.intn(3) / 2)
	if g.odd() {
		o.data = uint64(g.intn(5))
	}
}

// drawLockAll leaves LockAllCurrent out: all that is reserved around the window
// is more than may be locked.
func drawLockAll(g *generator, o *op) {
	o.data = [...]uint64{0, 0, 0, 2, 2, 6}[g.intn(6)]
	if g.odd() {
		o.data = [...]uint64{4, 8, 10}[g.intn(3)]
	}
}

// mostAsked is how long a range may be that is asked for: the answer has to fit
// into a buffer.
const mostAsked = bufferPages * page

const bufferPages = 12 << 10

func drawResident(g *generator, o *op) {
	drawRange(g, o)
	if end, ok := o.at.Add(o.length); ok && end <= g.top && o.length > mostAsked {
		o.length %= mostAsked
	}
}

func drawSync(g *generator, o *op) {
	drawRange(g, o)
	o.data = uint64(g.intn(8))
}
