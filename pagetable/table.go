package pagetable

import (
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
)

// Frames is what a page table needs to know of the frames it consists of and
// leads to. Every frame has one exact count of the entries and holders that
// refer to it.
type Frames interface {
	// Share adds one reference to each frame.
	Share(frames []addr.PFN)
	// ShareRun adds one to each of n frames that follow each other.
	ShareRun(f addr.PFN, n uint64)
	// Exclusive reports whether f has one reference, leaving out pins.
	Exclusive(f addr.PFN) bool
	// Drop takes one reference away and reports whether it was the last.
	Drop(f addr.PFN) bool
	// DropData takes one reference to each data frame away, and takes back
	// those whose last it was.
	DropData(frames []addr.PFN)
	// FreeTable takes back a table frame without references.
	FreeTable(f addr.PFN)
	// ShareBlock adds a 2 MiB leaf to those that lead to the 512 frames from f
	// on. ExclusiveBlock reports whether there is one and nothing else refers to
	// any of the frames, SplitBlock makes of one a reference to each frame, and
	// DropBlock takes one away, and takes back the frames whose last reference
	// that was.
	ShareBlock(f addr.PFN)
	ExclusiveBlock(f addr.PFN) bool
	SplitBlock(f addr.PFN)
	DropBlock(f addr.PFN)
	// Live reports whether f has references. Used under invariants.
	Live(f addr.PFN) bool
}

// Table is the page table of one address space. See the package comment for
// what may be called when.
type Table struct {
	// What a walk loads, on one cache line (TestWalksShareNoLineWithChanges): a
	// change of the space takes both mutexes several times, and each would cost a
	// reader on another core a miss.
	arena  arena.Arena   // immutable
	root   atomic.Uint64 // PFN of the current root; written under tables
	frames Frames        // immutable
	// fresh says that a second translator caches table entries by the frame of
	// their table: a live entry above the leaves is then never changed, and
	// the path up to a new root is made anew instead. Immutable.
	fresh bool

	_ [lineBytes]byte

	// tables serializes every edit above the leaves, and every copy or move
	// of a table. Taken outside of read sections.
	tables sync.Mutex
	// scratch gathers frames to be shared in one go. It is lent to who holds the
	// mutex, since a table of its own has no other use for 4 KiB: a fork would
	// clear them. tables.
	scratch *scratch

	changes changeLock

	_ [24]byte // a size of whole lines, and so aligned to them
}

// lineBytes is what the CPU fetches at a time.
const lineBytes = 64

// Options say how tables are edited.
type Options struct {
	// FreshPath: see Table.fresh.
	FreshPath bool
}

// New returns a table over an empty root. The lower half of the root frame
// must be zero; the table owns it.
func New(a arena.Arena, frames Frames, root addr.PFN, o Options) *Table {
	t := &Table{arena: a, frames: frames, fresh: o.FreshPath}
	t.root.Store(uint64(root))
	return t
}

// Root returns the current root frame. It changes under the tables mutex only.
func (t *Table) Root() addr.PFN { return addr.PFN(t.root.Load()) }

type scratch [arena.EntriesPerTable]addr.PFN

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// LockTables takes the tables mutex; the caller is in no read section.
func (t *Table) LockTables() {
	s := scratches.Get().(*scratch)
	t.tables.Lock()
	t.scratch = s
}

// LockToLook is LockTables for who edits nothing.
func (t *Table) LockToLook() { t.tables.Lock() }

// UnlockTables releases the tables mutex.
func (t *Table) UnlockTables() {
	s := t.scratch
	t.scratch = nil
	t.tables.Unlock()
	if s != nil {
		scratches.Put(s)
	}
}

// frameList returns an empty list that has room for the frames of a table.
//
// Preconditions: the caller holds the tables mutex.
func (t *Table) frameList() *scratch {
	if t.scratch == nil { // a broken variant, and tests
		return new(scratch)
	}
	return t.scratch
}

// Token is the right to take away: it exists while a change is under way and
// only LockChange makes one (R1). Lookups have none, so a lookup that takes a
// permission away does not compile.
type Token interface{ ofTable(*Table) bool }

type changeLock struct {
	mu sync.Mutex
	t  *Table
}

func (c *changeLock) ofTable(t *Table) bool { return c.t == t }

// LockChange begins a change of this table; one at a time.
func (t *Table) LockChange() Token {
	t.changes.mu.Lock()
	t.changes.t = t
	return &t.changes
}

// UnlockChange ends the change.
func (t *Table) UnlockChange(tok Token) {
	t.mustOwn(tok)
	t.changes.t = nil
	t.changes.mu.Unlock()
}

func (t *Table) mustOwn(tok Token) {
	if tok == nil || !tok.ofTable(t) {
		panic("pagetable: a change token of another table, or of a change that has ended")
	}
}

// load returns an entry of a table that the caller has walked to, 0 if absent.
func (t *Table) load(f addr.PFN, i uint64) Entry {
	t.mustBeLive(f)
	return bounded(&t.arena, Entry(t.arena.Load(f, i)))
}

// bounded returns e if it leads to a frame of the arena, which is counted, and 0,
// which is an absent entry, if not: tables are memory, and what is done with an
// entry's frame must not depend on nobody having written there (R14).
func bounded(a *arena.Arena, e Entry) Entry {
	if e&(Present|Special) == Present && a.ContainsAt(e.address()) {
		return e
	}
	return 0
}

// boundedAt is bounded for an entry of a table of the level above the leaves: it
// may be a 2 MiB leaf, of a whole block, at level 2 alone.
func boundedAt(a *arena.Arena, e Entry, level int) Entry {
	if e = bounded(a, e); e.Has(Huge) && (level != hugeLevel || !isBlock(a, e.Frame())) {
		return 0
	}
	return e
}

// isBlock reports whether a 2 MiB leaf can lead to the 512 frames from f on.
func isBlock(a *arena.Arena, f addr.PFN) bool {
	return f%arena.EntriesPerTable == 0 && a.Contains(f) && a.Contains(f+arena.EntriesPerTable-1)
}

// entry returns the entry for gva of a table of the level above the leaves that
// the caller has walked to, 0 if absent.
func (t *Table) entry(f addr.PFN, gva addr.GVA, level int) Entry {
	e := t.load(f, indexOf(gva, level))
	if e.Has(Huge) {
		return boundedAt(&t.arena, e, level)
	}
	return e
}

// mustBeLive panics, under invariants, if a walk has come to a freed table.
func (t *Table) mustBeLive(f addr.PFN) {
	if invariants.Enabled && t.arena.Contains(f) && !t.frames.Live(f) {
		panic("pagetable: walked to table " + f.String() + ", which has been freed")
	}
}
