package pagetable

import "github.com/guestmm/guestmm/guestmem/addr"

// Visitor is told of every reference that a table holds: one call an entry, even
// where that leads outside of the arena, for a check to find. It
// returns whether to go on below a table; a table that is shared is met once
// for each reference to it.
type Visitor interface {
	// VisitTable is told of a table of the level; entry is how it was reached,
	// and 0 for the root.
	VisitTable(f addr.PFN, level int, entry Entry) (descend bool)
	// VisitLeaf is told of a present leaf, which is Huge if it is one of 2 MiB.
	VisitLeaf(gva addr.GVA, e Entry)
}

// Visit walks the lower half of the whole table.
//
// Preconditions: nobody edits the table.
func (t *Table) Visit(v Visitor) { t.visit(v, t.Root(), rootLevel, 0, 0) }

func (t *Table) visit(v Visitor, f addr.PFN, level int, at addr.GVA, by Entry) {
	if !v.VisitTable(f, level, by) {
		return
	}
	n := uint64(512)
	if level == rootLevel {
		n = firstSupervisor
	}
	for i := range n {
		e := Entry(t.arena.Load(f, i))
		if !e.Has(Present) {
			continue
		}
		gva := at + addr.GVA(i*entrySpan(level))
		if level == leafLevel {
			v.VisitLeaf(gva, e&^Huge) // that bit is another attribute there
		} else if e.Has(Huge) {
			v.VisitLeaf(gva, e)
		} else {
			t.visit(v, e.Frame(), level-1, gva, e)
		}
	}
}
