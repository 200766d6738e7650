package familytest

import (
	"bytes"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	pageSize = addr.PageSize
	// base lies three pages below a border of leaf tables, so that they are split.
	base addr.GVA = 0x40000000 - 3*pageSize
	// nPages of a space; step puts every eighth into another leaf table.
	nPages = 40
)

// at returns where page i is. The first 32 are neighbours, over the border of two
// leaf tables; each of the others is in a table, and some in a directory, of its
// own.
func at(i int) addr.GVA {
	if i < 32 {
		return base + addr.GVA(i)*pageSize
	}
	return base + addr.GVA(i-31)<<29
}

// runOf returns how many pages from i on, n at most, lie next to each other.
func runOf(i, n int) int {
	if i >= 32 {
		return 1
	}
	return min(n, 32-i)
}

type content [pageSize]byte

// page is a page of a space; data is nil where nothing is mapped.
type page struct {
	data   *content
	prot   guestmem.Prot
	shared bool
}

// pages are the pages of a space or of a snapshot.
type pages [nPages]page

// copy is the naive fork.
func (p *pages) copy() *pages {
	c := *p
	for i := range c {
		if c[i].data != nil && !c[i].shared {
			own := *c[i].data
			c[i].data = &own
		}
	}
	return &c
}

func (p *pages) isMapped(i, n int) bool {
	for k := i; k < i+n; k++ {
		if p[k].data == nil {
			return false
		}
	}
	return true
}

// differ returns the ranges, of one page each, in which two differ, as
// guestmem.Diff by content has them.
func (p *pages) differ(o *pages) map[addr.GVA]bool {
	out := make(map[addr.GVA]bool)
	for i := range p {
		a, b := &p[i], &o[i]
		switch {
		case a.data == nil && b.data == nil:
		case a.data == nil, b.data == nil, a.prot != b.prot, a.shared != b.shared, a.shared && a.data != b.data:
			out[at(i)] = true
		case *a.data != *b.data:
			out[at(i)] = false
		}
	}
	return out
}

// space is an address space beside its model.
type space struct {
	as        *guestmem.AddressSpace
	pages     *pages
	snapshots []*snapshot
}

type snapshot struct {
	s     *guestmem.SpaceSnapshot
	pages *pages
}

// pin is a pin beside what its pages hold.
type pin struct {
	p    *guestmem.Pin
	data []*content
}

// check compares the frames as the device has them.
func (p *pin) check(m *guestmem.Memory) error {
	var got content
	for i, f := range p.p.Frames() {
		if _, err := m.ReadAt(got[:], f.GPA()); err != nil {
			return fmt.Errorf("pin of %v: page %d: %w", p.p.Range(), i, err)
		}
		if k := firstDifference(got[:], p.data[i][:]); k >= 0 {
			return fmt.Errorf("pin of %v: byte %d of page %d is %#x for the device, want %#x", p.p.Range(), k, i, got[k], p.data[i][k])
		}
	}
	return nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
