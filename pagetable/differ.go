package pagetable

import "github.com/guestmm/guestmm/guestmem/addr"

// EachDifference calls fn for every page whose leaf is another in t than in o, in
// address order: another frame, or none, or a guard or poison in one of them alone.
// Entries that are 0 are absent; of a pair one may be. One for which Withheld is true
// is a guard or poison, and has no frame. Where both lead to the same table it looks no
// further, so that its cost is that of what is not shared.
//
// A 2 MiB leaf is told of once, with its size, unless what is on the other side is
// in pieces: then a page at a time.
//
// Preconditions: nobody edits either table meanwhile.
func (t *Table) EachDifference(o *Table, fn func(at addr.GVA, size uint64, mine, theirs Entry)) {
	d := differ{t, fn}
	d.tables(t.Root(), o.Root(), rootLevel, 0)
}

type differ struct {
	t  *Table
	fn func(addr.GVA, uint64, Entry, Entry)
}

// noTable stands for a table that is not there: all its entries are absent.
const noTable = ^addr.PFN(0)

func (d *differ) tables(a, b addr.PFN, level int, at addr.GVA) {
	if a == b {
		return
	}
	n := uint64(512)
	if level == rootLevel {
		n = firstSupervisor
	}
	for i := range n {
		e, k := d.entry(a, i), d.entry(b, i)
		if level == leafLevel {
			e, k = d.leaf(a, i), d.leaf(b, i)
		}
		if alike(e, k) && e.Has(Huge) == k.Has(Huge) {
			continue
		}
		gva := at + addr.GVA(i*entrySpan(level))
		switch {
		case level == leafLevel, (e == 0 || e.Has(Huge)) && (k == 0 || k.Has(Huge)):
			d.fn(gva, entrySpan(level), e, k)
		case e.Has(Huge):
			d.pieces(gva, e, k.Frame(), func(p, q Entry) (Entry, Entry) { return p, q })
		case k.Has(Huge):
			d.pieces(gva, k, e.Frame(), func(p, q Entry) (Entry, Entry) { return q, p })
		default:
			d.tables(below(e), below(k), level-1, gva)
		}
	}
}

// pieces compares a 2 MiB leaf with a leaf table.
func (d *differ) pieces(at addr.GVA, huge Entry, table addr.PFN, order func(p, q Entry) (Entry, Entry)) {
	for i := range uint64(512) {
		p := huge&^frameMask&^Huge | Entry(huge.Frame()+addr.PFN(i))<<addr.PageShift
		if q := d.leaf(table, i); !alike(p, q) {
			e, k := order(p, q)
			d.fn(at+addr.GVA(i)*addr.PageSize, addr.PageSize, e, k)
		}
	}
}

func (d *differ) entry(table addr.PFN, i uint64) Entry {
	if table == noTable {
		return 0
	}
	return d.t.load(table, i)
}

// leaf is entry for a table of leaves, whose guards and poison it keeps.
func (d *differ) leaf(table addr.PFN, i uint64) Entry {
	if table == noTable {
		return 0
	}
	d.t.mustBeLive(table)
	e := Entry(d.t.arena.Load(table, i))
	if e.isGuard() {
		return e.marker()
	}
	return bounded(&d.t.arena, e)
}

// alike reports whether two entries lead to the same frame, or are alike without one.
func alike(e, k Entry) bool {
	if e.Has(Present) && k.Has(Present) {
		return e.Frame() == k.Frame()
	}
	return e == k
}

// Withheld reports whether the entry is that of a guard or of poison: a page that
// nobody gets by touching it.
func (e Entry) Withheld() bool { return e.isGuard() }

func below(e Entry) addr.PFN {
	if e == 0 {
		return noTable
	}
	return e.Frame()
}
