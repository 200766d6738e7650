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
	// Exclusive reports whether f has one reference, leaving out pins.
	Exclusive(f addr.PFN) bool
	// Drop takes one reference away and reports whether it was the last.
	Drop(f addr.PFN) bool
	// DropData takes one reference to each data frame away, and takes back
	// those whose last it was.
	DropData(frames []addr.PFN)
	// FreeTable takes back a table frame without references.
	FreeTable(f addr.PFN)
	// Live reports whether f has references. Used under invariants.
	Live(f addr.PFN) bool
}

// Table is the page table of one address space. See the package comment for
// what may be called when.
type Table struct {
	arena  arena.Arena // immutable
	frames Frames      // immutable
	// fresh says that a second translator caches table entries by the frame of
	// their table: a live entry above the leaves is then never changed, and
	// the path up to a new root is made anew instead. Immutable.
	fresh bool

	root atomic.Uint64 // PFN of the current root; written under tables

	// tables serializes every edit above the leaves, and every copy or move
	// of a table. Taken outside of read sections.
	tables sync.Mutex
	// scratch gathers frames to be shared in one go; tables.
	scratch [arena.EntriesPerTable]addr.PFN

	changes changeLock
}

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

// LockTables takes the tables mutex; the caller is in no read section.
func (t *Table) LockTables() { t.tables.Lock() }

// UnlockTables releases the tables mutex.
func (t *Table) UnlockTables() { t.tables.Unlock() }

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

// bounded returns e if it leads to a frame of the arena, and 0, which is an
// absent entry, if not: tables are memory, and what is done with an entry's
// frame must not depend on nobody having written there (R14).
func bounded(a *arena.Arena, e Entry) Entry {
	if e.Has(Present) && a.ContainsAt(e.address()) {
		return e
	}
	return 0
}

// mustBeLive panics, under invariants, if a walk has come to a freed table.
func (t *Table) mustBeLive(f addr.PFN) {
	if invariants.Enabled && t.arena.Contains(f) && !t.frames.Live(f) {
		panic("pagetable: walked to table " + f.String() + ", which has been freed")
	}
}
