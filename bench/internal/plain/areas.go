package plain

import (
	"fmt"

	"github.com/google/btree"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// areas says what may be done where. Addresses are whole pages; guarded by the
// space's lock.
type areas interface {
	// at returns what may be done at addr, and whether anything is mapped there.
	at(addr uint64) (workload.Prot, bool)
	// set maps [start, end) in place of what is there.
	set(start, end uint64, prot workload.Prot) error
	clear(start, end uint64)
	// covers reports whether all of [start, end) is mapped.
	covers(start, end uint64) bool
	clone() areas
}

// area is [start, end).
type area struct {
	start, end uint64
	prot       workload.Prot
}

// treeAreas is areas that do not overlap, by their start. Equal neighbours are one.
type treeAreas struct{ tree *btree.BTreeG[area] }

const degree = 32

func newTreeAreas() areas {
	return treeAreas{btree.NewG(degree, func(a, b area) bool { return a.start < b.start })}
}

func (t treeAreas) find(addr uint64) (found area, ok bool) {
	t.tree.DescendLessOrEqual(area{start: addr}, func(a area) bool {
		found, ok = a, addr < a.end
		return false
	})
	return found, ok
}

func (t treeAreas) at(addr uint64) (workload.Prot, bool) {
	a, ok := t.find(addr)
	if !ok {
		return 0, false
	}
	return a.prot, true
}

func (t treeAreas) covers(start, end uint64) bool {
	for start < end {
		a, ok := t.find(start)
		if !ok {
			return false
		}
		start = a.end
	}
	return true
}

func (t treeAreas) clear(start, end uint64) {
	if a, ok := t.find(start); ok && a.start < start {
		t.tree.ReplaceOrInsert(area{a.start, start, a.prot})
		t.tree.ReplaceOrInsert(area{start, a.end, a.prot})
	}
	var gone []area
	t.tree.AscendRange(area{start: start}, area{start: end}, func(a area) bool {
		gone = append(gone, a)
		return true
	})
	for _, a := range gone {
		t.tree.Delete(a)
		if a.end > end {
			t.tree.ReplaceOrInsert(area{end, a.end, a.prot})
		}
	}
}

func (t treeAreas) set(start, end uint64, prot workload.Prot) error {
	t.clear(start, end)
	a := area{start, end, prot}
	if start > 0 {
		if left, ok := t.find(start - 1); ok && left.prot == prot {
			a.start = left.start
		}
	}
	if right, ok := t.find(end); ok && right.prot == prot {
		t.tree.Delete(right)
		a.end = right.end
	}
	t.tree.ReplaceOrInsert(a)
	return nil
}

// clone is lazy: the trees share what neither changes.
func (t treeAreas) clone() areas { return treeAreas{t.tree.Clone()} }

// mapAreas has an entry for each page.
type mapAreas map[uint64]workload.Prot

// maxPages is above what the rows touch; the sparse terabyte would be 2^28 entries.
const maxPages = 1 << 21

func newMapAreas() areas { return make(mapAreas) }

func (m mapAreas) at(addr uint64) (workload.Prot, bool) {
	prot, ok := m[addr/workload.PageSize]
	return prot, ok
}

func (m mapAreas) covers(start, end uint64) bool {
	for p := start / workload.PageSize; p < end/workload.PageSize; p++ {
		if _, ok := m[p]; !ok {
			return false
		}
	}
	return true
}

func (m mapAreas) set(start, end uint64, prot workload.Prot) error {
	if n := (end - start) / workload.PageSize; n > maxPages {
		return fmt.Errorf("plain: a map of pages would have %d entries for this one mapping", n)
	}
	for p := start / workload.PageSize; p < end/workload.PageSize; p++ {
		m[p] = prot
	}
	return nil
}

func (m mapAreas) clear(start, end uint64) {
	for p := start / workload.PageSize; p < end/workload.PageSize; p++ {
		delete(m, p)
	}
}

// clone copies one by one: maps.Clone copies the table and its holes as they are,
// which is faster, and what it costs is not of this map but of its past.
func (m mapAreas) clone() areas {
	c := make(mapAreas, len(m))
	for p, prot := range m {
		c[p] = prot
	}
	return c
}
