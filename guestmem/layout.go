package guestmem

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// LayoutState is what is known of a page, a set of bits; 0 is a page that is not
// there yet.
type LayoutState uint8

// What is known of a page.
const (
	LaidPresent LayoutState = 1 << iota // there is a frame; private unless LaidShared
	LaidShared                          // somebody else leads to the frame too: an address space, a snapshot, an object
	LaidPinned                          // the frame is pinned, by this address space
	LaidArmed                           // somebody is told of the next write
	LaidHuge                            // by a leaf of 2 MiB
)

// LayoutRange is pages of one area, next to each other, that are alike.
type LayoutRange struct {
	addr.Range
	Prot  Prot
	Name  string // of the area, as AreaInfo has it
	State LayoutState
	// With are the numbers of the other address spaces and snapshots that lead to
	// the same frames, ascending.
	With []uint32
}

// SpaceLayout is what an address space, or a snapshot of one, is made of.
type SpaceLayout struct {
	ID       uint32 // its number; not used for another while it is open
	Snapshot bool
	Ranges   []LayoutRange // of all areas, in address order
	Areas    int           // as SpaceStats.Areas
	Mapped   uint64        // bytes, as SpaceStats.MappedBytes
}

// Bytes returns how many bytes have all of the states in with and none in without.
func (l *SpaceLayout) Bytes(with, without LayoutState) (sum uint64) {
	for i := range l.Ranges {
		if s := l.Ranges[i].State; s&with == with && s&without == 0 {
			sum += l.Ranges[i].Len()
		}
	}
	return sum
}

// FamilyLayout is all address spaces of a Memory and what they share. The four
// counts of frames add up to MemoryStats.FramesInUse.
type FamilyLayout struct {
	Spaces []SpaceLayout // by ID

	DataFrames uint64 // that page tables lead to
	Tables     uint64 // as MemoryStats.Tables
	Unmapped   uint64 // of objects, and mapped nowhere
	PinnedAway uint64 // pinned, and led to by nothing else
}

// Layout describes every address space and snapshot of the memory: range by range
// what is there, and who shares it with whom. It holds changes back and shuts the
// door meanwhile, as Check does. O(pages of all address spaces).
func (m *Memory) Layout() FamilyLayout {
	var f FamilyLayout
	spaces, unlock := m.lockAll()
	defer unlock()
	if m.pool == nil {
		return f
	}
	_ = m.window(func() error { // fn has no error
		l := &surveyor{mem: m, owners: make(map[addr.PFN][]uint32), tables: make(map[addr.PFN]struct{})}
		leaves := make([][]foundLeaf, len(spaces))
		for i, as := range spaces {
			l.as, l.leaves = as, nil
			as.pt.Visit(l)
			if as.spareRoot != 0 {
				l.tables[as.spareRoot] = struct{}{}
			}
			leaves[i] = l.leaves
		}
		for i, as := range spaces {
			f.Spaces = append(f.Spaces, l.layoutOf(as, leaves[i]))
		}
		f.DataFrames, f.Tables = uint64(len(l.owners)), uint64(len(l.tables))
		l.unled(spaces, &f)
		return nil
	})
	return f
}

// Layout is Memory.Layout of one address space. The others are looked at as well,
// to tell who shares with it.
//
// Errors: ErrClosed.
func (as *AddressSpace) Layout() (SpaceLayout, error) {
	for _, l := range as.mem.Layout().Spaces {
		if l.ID == uint32(as.id) && !as.isClosed() {
			return l, nil
		}
	}
	return SpaceLayout{}, opError("layout", addr.Range{}, ErrClosed)
}

func (as *AddressSpace) isClosed() bool {
	tok, err := as.lockChange()
	if err == nil {
		as.pt.UnlockChange(tok)
	}
	return err != nil
}

type foundLeaf struct {
	at addr.GVA
	e  pagetable.Entry
}

// surveyor is a Layout under way: a pagetable.Visitor.
type surveyor struct {
	mem    *Memory
	as     *AddressSpace // being visited
	leaves []foundLeaf   // of as
	owners map[addr.PFN][]uint32
	tables map[addr.PFN]struct{}
}

// VisitTable implements pagetable.Visitor.
func (l *surveyor) VisitTable(f addr.PFN, _ int, _ pagetable.Entry) bool {
	l.tables[f] = struct{}{}
	return l.mem.arena.Contains(f)
}

// VisitLeaf implements pagetable.Visitor.
func (l *surveyor) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	if e.IsSpecial() { // of no frame
		l.leaves = append(l.leaves, foundLeaf{gva, e})
		return
	}
	n := addr.PFN(1)
	if e.Has(pagetable.Huge) {
		n = 512
	}
	for i := range n {
		f := e.Frame() + i
		by := l.owners[f]
		if len(by) == 0 || by[len(by)-1] != uint32(l.as.id) {
			l.owners[f] = append(by, uint32(l.as.id))
		}
		l.leaves = append(l.leaves, foundLeaf{gva + addr.GVA(i)*addr.PageSize, withFrame(e, f)})
	}
}

// withFrame returns e for one page of it.
func withFrame(e pagetable.Entry, f addr.PFN) pagetable.Entry {
	return e&^(pagetable.Entry(e.Frame())<<addr.PageShift) | pagetable.Entry(f)<<addr.PageShift
}

func (l *surveyor) layoutOf(as *AddressSpace, leaves []foundLeaf) SpaceLayout {
	out := SpaceLayout{ID: uint32(as.id), Snapshot: as.frozen}
	pinned := make(map[addr.PFN]bool)
	as.pins.each(func(f addr.PFN) { pinned[f] = true })
	as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
		out.Areas++
		out.Mapped += a.Len()
		info := as.infoOf(a)
		r := LayoutRange{Prot: info.Prot, Name: info.Name}
		at := a.Start
		for at < a.End {
			end := a.End
			r.State, r.With = 0, nil
			if len(leaves) > 0 && leaves[0].at < a.End {
				if end = leaves[0].at; end == at {
					r.State, r.With = l.stateOf(as, leaves[0].e, pinned)
					leaves, end = leaves[1:], at+addr.PageSize
				}
			}
			r.Range = addr.Range{Start: at, End: end}
			out.add(r, a.Start)
			at = end
		}
		return true
	})
	return out
}

// add adds a range of the area that begins at start, joined with the one before
// if they are alike.
func (l *SpaceLayout) add(r LayoutRange, start addr.GVA) {
	if n := len(l.Ranges); n > 0 && r.Start > start {
		if p := &l.Ranges[n-1]; p.State == r.State && slices.Equal(p.With, r.With) {
			p.End = r.End
			return
		}
	}
	l.Ranges = append(l.Ranges, r)
}

func (l *surveyor) stateOf(as *AddressSpace, e pagetable.Entry, pinned map[addr.PFN]bool) (LayoutState, []uint32) {
	f := e.Frame()
	s := LaidPresent
	var with []uint32
	for _, id := range l.owners[f] {
		if id != uint32(as.id) {
			with = append(with, id)
		}
	}
	if len(with) > 0 || e.Has(pagetable.Shared) || !l.mem.pool.Exclusive(f) && !e.Has(pagetable.Huge) {
		s |= LaidShared
	}
	if pinned[f] {
		s |= LaidPinned
	}
	if e.Has(pagetable.Armed) {
		s |= LaidArmed
	}
	if e.Has(pagetable.Huge) {
		s |= LaidHuge
	}
	return s, with
}

// unled counts the frames that no page table leads to.
func (l *surveyor) unled(spaces []*AddressSpace, f *FamilyLayout) {
	seen := make(map[addr.PFN]bool)
	count := func(n *uint64) func(addr.PFN) {
		return func(g addr.PFN) {
			if l.owners[g] == nil && !seen[g] {
				seen[g] = true
				*n++
			}
		}
	}
	l.mem.mu.Lock()
	for o := range l.mem.objects {
		o.each(count(&f.Unmapped))
	}
	l.mem.mu.Unlock()
	for _, as := range spaces {
		as.pins.each(count(&f.PinnedAway))
	}
	for s := range l.mem.orphanPins() {
		s.each(count(&f.PinnedAway))
	}
}
