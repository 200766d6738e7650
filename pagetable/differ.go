package pagetable

import "github.com/guestmm/guestmm/guestmem/addr"

// EachDifference calls fn for every page whose leaf is another in t than in o, in
// address order: another frame, or none. Entries that are 0 are absent; of a pair
// one may be. Where both lead to the same table it looks no further, so that its
// cost is that of what is not shared.
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
		if e == 0 && k == 0 || e != 0 && k != 0 && e.Frame() == k.Frame() && e.Has(Huge) == k.Has(Huge) {
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
		if q := d.entry(table, i); q == 0 || q.Frame() != p.Frame() {
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

func below(e Entry) addr.PFN {
	if e == 0 {
		return noTable
	}
	return e.Frame()
}
