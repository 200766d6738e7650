package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/internal/invariants"
)

// Lookups edit leaves by compare-and-swap against what they walked to, in a
// table whose path is writable throughout. They lose to whoever came first,
// and to the CPU when it sets accessed or dirty meanwhile; then they start
// over. Each function here only adds.
//
// Preconditions of all: the caller is in the read section that found the leaf,
// StartRead passed in it, and l.Owned.

// Install makes an absent leaf present. The caller has a reference to the
// frame, which becomes the entry's if Install returns true. Whatever bits an
// entry without a frame held are overwritten, but for a guard's: nobody could install there
// otherwise, and the fault would be tried for ever (R14).
func (l Leaf) Install(e Entry) bool {
	if invariants.Enabled {
		invariants.MayYield()
	}
	if invariants.Enabled && (!l.Owned || l.Entry != 0 || l.Guarded || !e.Has(Present)) {
		panic("pagetable: Install of a leaf that is not absent, a guard, or not owned")
	}
	return l.Entry == 0 && atomic.CompareAndSwapUint64(l.entry, uint64(l.held), uint64(e))
}

// InstallOver is Install that also takes the place of a guard or of poison: who
// says what memory holds may mend it.
func (l Leaf) InstallOver(e Entry) bool {
	if invariants.Enabled {
		invariants.MayYield()
	}
	if invariants.Enabled && (!l.Owned || l.Entry != 0 || !e.Has(Present)) {
		panic("pagetable: InstallOver of a leaf that is not absent or not owned")
	}
	return l.Entry == 0 && atomic.CompareAndSwapUint64(l.entry, uint64(l.held), uint64(e))
}

// PutSpecial makes a leaf e, a SpecialEntry, where nothing is, or a special leaf
// that may allow less. It adds, too: an area's leaves allow no more than the area,
// and e is all that the area allows.
func (l Leaf) PutSpecial(e Entry) bool {
	if invariants.Enabled {
		invariants.MayYield()
	}
	if invariants.Enabled && (!l.Owned || l.Entry != 0 || l.Guarded || !e.IsSpecial()) {
		panic("pagetable: PutSpecial of a leaf that is counted, a guard, or not owned")
	}
	e |= l.held & (Accessed | Dirty)
	return l.Entry == 0 && (l.held == e || atomic.CompareAndSwapUint64(l.entry, uint64(l.held), uint64(e)))
}

// Poison makes an absent leaf that holds nothing, no marker either, poison.
func (l Leaf) Poison() bool {
	return l.Owned && l.held == 0 && atomic.CompareAndSwapUint64(l.entry, 0, uint64(Guard|Armed))
}

// Marked reports whether an absent leaf holds a marker.
func (l Leaf) Marked() bool { return l.held.marker() != 0 }

// Poisoned reports whether the leaf is poison.
func (l Leaf) Poisoned() bool { return l.held.isPoison() }

// Armed reports whether the page is armed, or will be when it comes.
func (l Leaf) Armed() bool { return l.held.Has(Armed) && !l.held.isGuard() }

// Allow adds permissions to a present leaf: grant may have Writable, User and
// Dirty set, and NoExec set to have it cleared. What becomes writable is armed no
// more.
func (l Leaf) Allow(grant Entry) bool {
	if invariants.Enabled {
		invariants.MayYield()
	}
	e := l.Entry | grant&(Writable|User|Dirty)
	if grant.Has(NoExec) {
		e &^= NoExec
	}
	if grant.Has(Writable) {
		e &^= Armed
	}
	if invariants.Enabled && (!l.Owned || !l.Entry.Has(Present)) {
		panic("pagetable: Allow on a leaf that is absent or not owned")
	}
	return atomic.CompareAndSwapUint64(l.entry, uint64(l.Entry), uint64(e))
}

// Replace puts another frame, a copy, in the place of a read-only one. The
// entry's reference to the old frame is the caller's to retire if it returns
// true. Accessed and dirty of the old entry describe the old frame.
func (l Leaf) Replace(e Entry) bool {
	if invariants.Enabled {
		invariants.MayYield()
	}
	if invariants.Enabled && (!l.Owned || !l.Entry.Has(Present) || l.Entry.Has(Writable)) {
		panic("pagetable: Replace of a leaf that is writable, absent or not owned")
	}
	return atomic.CompareAndSwapUint64(l.entry, uint64(l.Entry), uint64(e))
}
