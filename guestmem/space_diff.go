package guestmem

import (
	"bytes"
	"fmt"
	"iter"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Comparable is what Diff compares: a *SpaceSnapshot, or an *AddressSpace as it is
// when the comparison begins.
type Comparable interface {
	// frozenFor returns the address space to look at, which stands still until
	// done is called.
	frozenFor() (as *AddressSpace, done func(), err error)
}

// DiffMode says when the pages of two address spaces differ.
type DiffMode int

// Modes of Diff.
const (
	// ByFrame: they are different frames, or one is there and the other is not yet, or
	// one is a guard page (AdviceGuardInstall) or poisoned. No byte is read. What was
	// never written since it was shared is the same frame.
	ByFrame DiffMode = iota
	// ByContent: of those, the ones that read differently, if at all. An empty page that
	// is there and one that is not yet read the same.
	ByContent
)

// Difference is a range that differs between two address spaces, in whole pages.
type Difference struct {
	addr.Range
	// Mapping: what is mapped there differs: one has an area where the other has
	// none, or another protection, sharing, object, offset, lock, advice or name. Otherwise the areas
	// are alike, and the pages differ.
	Mapping bool
}

// Diff yields the ranges in which two address spaces of one Memory differ, in
// address order, neighbours joined, without looking at what they share: it takes
// time for the tables and frames that one of them has alone, and, unless both
// have the very same areas, for the number of areas. All is gathered before the
// first is yielded, so that the caller may change either meanwhile. An address
// space that is given is snapshotted for it, as Snapshot does.
//
// An error is yielded once, alone: ErrClosed; ErrInvalid for nil; ErrOtherSpace
// for two memories; ErrNoMemory, or ErrBusy where a monitor has areas, for the
// snapshot.
func Diff(a, b Comparable, mode DiffMode) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		found, err := diff(a, b, mode)
		if err != nil {
			yield(Difference{}, opError("diff", addr.Range{}, err))
			return
		}
		for _, d := range found {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func (s *SpaceSnapshot) frozenFor() (*AddressSpace, func(), error) {
	if s == nil {
		return nil, nil, ErrInvalid
	}
	if err := s.hold(); err != nil {
		return nil, nil, err
	}
	return s.frozen, s.letGo, nil
}

func (as *AddressSpace) frozenFor() (*AddressSpace, func(), error) {
	if as == nil {
		return nil, nil, ErrInvalid
	}
	s, err := as.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	return s.frozen, func() { _ = s.Close() }, nil
}

func diff(a, b Comparable, mode DiffMode) ([]Difference, error) {
	if a == nil || b == nil || mode != ByFrame && mode != ByContent {
		return nil, ErrInvalid
	}
	x, done, err := a.frozenFor()
	if err != nil {
		return nil, err
	}
	defer done()
	y, done, err := b.frozenFor()
	if err != nil {
		return nil, err
	}
	defer done()
	switch {
	case x.mem != y.mem:
		return nil, fmt.Errorf("of two memories: %w", ErrOtherSpace)
	case x == y:
		return nil, nil
	}
	// Pages may be taken out of an object that both map: not meanwhile.
	first, second := x, y
	if second.id < first.id {
		first, second = second, first
	}
	for _, as := range [2]*AddressSpace{first, second} {
		tok, err := as.lockChange()
		if err != nil {
			return nil, err
		}
		defer as.pt.UnlockChange(tok)
	}
	d := &spaceDiff{x: x, y: y, mode: mode}
	d.areas()
	d.pages()
	return d.merged(), nil
}

// spaceDiff is a comparison under way.
type spaceDiff struct {
	x, y  *AddressSpace
	mode  DiffMode
	found [2][]Difference // of pages, of mappings; each in address order
}

func (d *spaceDiff) add(r addr.Range, mapping bool) {
	list := &d.found[0]
	if mapping {
		list = &d.found[1]
	}
	if n := len(*list); n > 0 && (*list)[n-1].End == r.Start {
		(*list)[n-1].End = r.End
		return
	}
	*list = append(*list, Difference{r, mapping})
}

// areas compares what is mapped, border by border.
func (d *spaceDiff) areas() {
	s, t := d.x.tree.Snapshot(), d.y.tree.Snapshot()
	if s.Same(t) {
		return
	}
	left, stop := iter.Pull(areasOf(s))
	defer stop()
	right, stop := iter.Pull(areasOf(t))
	defer stop()
	a, b := nextArea(left), nextArea(right)
	for at := addr.GVA(0); a != nil || b != nil; {
		if a == b {
			at, a, b = a.End, nextArea(left), nextArea(right)
			continue
		}
		inA, endA := reaches(a, at)
		inB, endB := reaches(b, at)
		end := min(endA, endB)
		if inA != inB || inA && !alike(a, b, at) {
			d.add(addr.Range{Start: at, End: end}, true)
		}
		if at = end; a != nil && a.End == at {
			a = nextArea(left)
		}
		if b != nil && b.End == at {
			b = nextArea(right)
		}
	}
}

func areasOf(s vmarea.Snapshot) iter.Seq[*vmarea.Area] {
	return func(yield func(*vmarea.Area) bool) { s.Ascend(0, yield) }
}

func nextArea(next func() (*vmarea.Area, bool)) *vmarea.Area {
	a, _ := next()
	return a
}

// reaches returns whether an area covers at, and up to where that stays so.
func reaches(a *vmarea.Area, at addr.GVA) (in bool, end addr.GVA) {
	switch {
	case a == nil:
		return false, ^addr.GVA(0)
	case at < a.Start:
		return false, a.Start
	}
	return true, a.End
}

// alike reports whether two areas show the same at an address.
func alike(a, b *vmarea.Area, at addr.GVA) bool {
	return a.Prot == b.Prot && a.Flags == b.Flags && a.Backing == b.Backing &&
		(a.Backing == nil || a.OffsetOf(at) == b.OffsetOf(at))
}

// pages compares the leaves.
func (d *spaceDiff) pages() {
	d.x.pt.EachDifference(d.y.pt, func(at addr.GVA, size uint64, e, k pagetable.Entry) {
		if d.mode == ByFrame {
			d.add(addr.Range{Start: at, End: at + addr.GVA(size)}, false)
			return
		}
		for off := addr.GVA(0); off < addr.GVA(size); off += addr.PageSize {
			if e.Withheld() || k.Withheld() || !d.readsSame(at+off, pieceOf(e, off), pieceOf(k, off)) {
				d.add(addr.Range{Start: at + off, End: at + off + addr.PageSize}, false)
			}
		}
	})
}

// pieceOf returns the frame of a page of a leaf, 0 if it is absent.
func pieceOf(e pagetable.Entry, off addr.GVA) addr.PFN {
	if e == 0 {
		return 0
	}
	return e.Frame() + addr.PFN(off>>addr.PageShift)
}

// readsSame compares two pages, of which one may not be there: then it is what a
// first touch would find, if that is known.
func (d *spaceDiff) readsSame(at addr.GVA, f, g addr.PFN) bool {
	if f == 0 {
		f = d.x.untouched(at)
	}
	if g == 0 {
		g = d.y.untouched(at)
	}
	switch {
	case f == g:
		return f != unknownFrame
	case f == unknownFrame, g == unknownFrame:
		return false
	}
	same := false
	m := d.x.mem
	compare := func() { same = bytes.Equal(m.contentOf(f), m.contentOf(g)) }
	m.pastDoor(func() {
		if !m.hosted.Load() {
			compare()
		} else if !guard(compare) {
			same = false // a file's page that is gone: nobody knows
		}
	})
	return same
}

const unknownFrame = ^addr.PFN(0)

// untouched returns the frame that a page which is not there has when it is
// read: 0 for an empty one.
func (as *AddressSpace) untouched(at addr.GVA) addr.PFN {
	a := as.tree.Snapshot().Find(at)
	if a == nil || a.Backing == nil {
		return 0
	}
	o := a.Backing.(*Object)
	if index := a.OffsetOf(at) / addr.PageSize; index < o.pages() {
		if f, ok := o.page(index); ok {
			return f
		}
	}
	return unknownFrame
}

var emptyPage [addr.PageSize]byte

// contentOf returns the bytes of a frame, of an empty page for 0.
func (m *Memory) contentOf(f addr.PFN) []byte {
	if f == 0 {
		return emptyPage[:]
	}
	return m.arena.Bytes(f)
}

// merged joins both lists: where the mapping differs, pages are not told of.
func (d *spaceDiff) merged() []Difference {
	pages, out := d.found[0], d.found[1]
	for _, p := range pages {
		rest := p.Range
		i, _ := slices.BinarySearchFunc(d.found[1], rest.Start, func(m Difference, at addr.GVA) int {
			if m.End <= at {
				return -1
			}
			return 1
		})
		for ; i < len(d.found[1]) && d.found[1][i].Start < rest.End; i++ {
			m := d.found[1][i]
			if rest.Start < m.Start {
				out = append(out, Difference{Range: addr.Range{Start: rest.Start, End: m.Start}})
			}
			rest.Start = max(rest.Start, m.End)
		}
		if rest.Start < rest.End {
			out = append(out, Difference{Range: rest})
		}
	}
	slices.SortFunc(out, func(a, b Difference) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return out
}
