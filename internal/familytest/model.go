package familytest

import (
	"bytes"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	pageSize = addr.PageSize
	// nPages of a space; each of the last is in another leaf table.
	nPages = 40
	nRun   = 32
)

// layout says where pages are. A page of the model is a unit: one page of memory, or
// several, of which all but the first stay empty.
type layout struct {
	base addr.GVA
	unit uint64 // bytes
}

var (
	// Three pages below a border of leaf tables, so that they are split.
	small = layout{0x40000000 - 3*pageSize, pageSize}
	// Sixteen pages of the model are 2 MiB, aligned so that one leaf can map them.
	large = layout{0x40000000, 32 * pageSize}
)

// at returns where page i is. The first 32 are neighbours, over the border of two
// leaf tables; each of the others is in a table, and some in a directory, of its
// own.
func (l layout) at(i int) addr.GVA {
	if i < nRun {
		return l.base + addr.GVA(i)*addr.GVA(l.unit)
	}
	return l.base + addr.GVA(i-nRun+1)<<29
}

// runOf returns how many pages from i on, n at most, lie next to each other.
func runOf(i, n int) int {
	if i >= nRun {
		return 1
	}
	return min(n, nRun-i)
}

type content [pageSize]byte

// page is a page of a space; data is nil where nothing is mapped.
type page struct {
	data *content
	area
	guard bool
}

// area is what is said of a page's area.
type area struct {
	prot                   guestmem.Prot
	shared                 bool
	origin                 *content // of a file's private page: what it was
	locked, dontFork, wipe bool
}

func (p *page) isReadable() bool { return p.data != nil && !p.guard && p.prot != guestmem.ProtNone }
func (p *page) isWritable() bool { return p.isReadable() && p.prot&guestmem.ProtWrite != 0 }

// empty is what a page holds that is dropped.
func (p *page) empty() *content {
	c := new(content)
	if p.origin != nil {
		*c = *p.origin
	}
	return c
}

// pages are the pages of a space or of a snapshot.
type pages [nPages]page

// copy is the naive snapshot.
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

// fork is the naive fork.
func (p *pages) fork() *pages {
	c := p.copy()
	for i := range c {
		switch q := &c[i]; {
		case q.dontFork:
			*q = page{}
		case q.wipe:
			q.data, q.guard, q.locked = new(content), false, false
		default:
			q.locked = false
		}
	}
	return c
}

func (p *pages) isMapped(i, n int) bool {
	return p.all(i, n, func(q *page) bool { return q.data != nil })
}

func (p *pages) all(i, n int, is func(*page) bool) bool {
	for k := i; k < i+n; k++ {
		if !is(&p[k]) {
			return false
		}
	}
	return true
}

// difference is what guestmem.Diff by content is to tell of a page. It may tell of
// one of a file that it has not read. A guard differs from a page in all of its unit.
type difference struct{ mapping, may, guard bool }

func (p *pages) differ(o *pages, l layout) map[addr.GVA]difference {
	out := make(map[addr.GVA]difference)
	for i := range p {
		a, b := &p[i], &o[i]
		switch {
		case a.data == nil && b.data == nil:
		case a.data == nil, b.data == nil, a.area != b.area, a.shared && a.data != b.data:
			out[l.at(i)] = difference{mapping: true}
		case a.guard != b.guard:
			out[l.at(i)] = difference{guard: true}
		case *a.data != *b.data:
			out[l.at(i)] = difference{}
		case a.origin != nil:
			out[l.at(i)] = difference{may: true}
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
	unit uint64
	data []*content
}

// gpa returns where page i is for the device.
func (p *pin) gpa(i int) addr.GPA { return p.p.Frames()[uint64(i)*p.unit/pageSize].GPA() }

// check compares the frames as the device has them.
func (p *pin) check(m *guestmem.Memory) error {
	var got content
	for i := range p.data {
		if _, err := m.ReadAt(got[:], p.gpa(i)); err != nil {
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
