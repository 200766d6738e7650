package guestmem

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Check walks everything and compares: each frame's count with the references
// to it that page tables, objects, pins and the platform hold, each leaf with
// its area, and each space's areas with themselves. It holds changes back and
// shuts the door meanwhile. It is exact when no call is in progress; frames that
// a call has taken and not yet installed look like a leak. O(memory).
func (m *Memory) Check() error {
	m.domain.Synchronize()
	spaces, unlock := m.lockAll()
	defer unlock()
	if m.pool == nil {
		return nil
	}
	return m.window(func() error {
		c := &checker{mem: m, refs: make(map[addr.PFN]uint32), tables: make(map[addr.PFN]int), data: make(map[addr.PFN]struct{}), blocks: make(map[addr.PFN]uint32)}
		for _, as := range spaces {
			c.space(as)
		}
		c.objects()
		c.isolation()
		c.counts()
		return errors.Join(c.errs...)
	})
}

// lockAll begins a change of every address space, in the order of their ids.
func (m *Memory) lockAll() ([]*AddressSpace, func()) {
	for {
		spaces := m.sortedSpaces()
		var unlocks []func()
		for _, as := range spaces {
			if tok, err := as.lockChange(); err == nil {
				unlocks = append(unlocks, func() { as.pt.UnlockChange(tok) })
			}
		}
		unlock := func() {
			for _, fn := range unlocks {
				fn()
			}
		}
		if len(unlocks) == len(spaces) && slices.Equal(spaces, m.sortedSpaces()) {
			return spaces, unlock
		}
		unlock()
	}
}

func (m *Memory) sortedSpaces() []*AddressSpace {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*AddressSpace
	for _, as := range m.spaces {
		if as.pt != nil {
			out = append(out, as)
		}
	}
	slices.SortFunc(out, func(a, b *AddressSpace) int { return cmp.Compare(a.id, b.id) })
	return out
}

// checker gathers references and complaints.
type checker struct {
	mem    *Memory
	as     *AddressSpace // being visited
	refs   map[addr.PFN]uint32
	tables map[addr.PFN]int      // level of each table met
	data   map[addr.PFN]struct{} // frames that a leaf or an object leads to
	blocks map[addr.PFN]uint32   // 2 MiB leaves that lead to each
	errs   []error
}

const maxComplaints = 20

func (c *checker) complain(format string, args ...any) {
	if len(c.errs) < maxComplaints {
		c.errs = append(c.errs, fmt.Errorf(format, args...))
	}
}

func (c *checker) space(as *AddressSpace) {
	c.as = as
	if err := as.tree.CheckInvariants(); err != nil {
		c.complain("space %d: %w", as.id, err)
	}
	as.pt.Visit(c)
	if as.spareRoot != 0 {
		c.refs[as.spareRoot]++
		c.tables[as.spareRoot] = 4
	}
	c.pins(&as.pins)
	c.mapped(as)
}

func (c *checker) pins(s *pinSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.frames {
		c.refs[f]++
	}
}

// VisitTable implements pagetable.Visitor. A table that is shared is entered
// once: its content is counted once, however many lead to it.
func (c *checker) VisitTable(f addr.PFN, level int, _ pagetable.Entry) bool {
	if !c.mem.arena.Contains(f) {
		c.complain("space %d leads to table %v outside of the memory", c.as.id, f)
		return false
	}
	c.refs[f]++
	before, met := c.tables[f]
	if met && before != level {
		c.complain("table %v is used at levels %d and %d", f, before, level)
	}
	c.tables[f] = level
	return !met
}

// VisitLeaf implements pagetable.Visitor.
func (c *checker) VisitLeaf(gva addr.GVA, e pagetable.Entry) {
	if e.Has(pagetable.Huge) {
		c.hugeLeaf(gva, e)
		return
	}
	a := c.as.tree.Snapshot().Find(gva)
	if e.IsSpecial() || a != nil && isDevice(a) {
		c.special(a, gva, e)
		return
	}
	c.refs[e.Frame()]++
	c.data[e.Frame()] = struct{}{}
	c.allowed(a, gva, e)
}

// special is VisitLeaf for the leaf of a device's memory, which no count knows: it
// leads to where its area says.
func (c *checker) special(a *vmarea.Area, gva addr.GVA, e pagetable.Entry) {
	c.allowed(a, gva, e)
	if a == nil {
		return
	}
	o, ok := a.Backing.(*Object)
	if !ok || o.device == nil || !e.IsSpecial() {
		c.complain("space %d: special leaf %#x at %v: its area is %v", c.as.id, uint64(e), gva, a)
		return
	}
	if at := o.deviceAt + addr.GPA(a.OffsetOf(gva)); e.Frame().GPA() != at || !o.device.Contains(at) || c.mem.arena.Contains(e.Frame()) {
		c.complain("space %d: special leaf at %v leads to %v, not to %v", c.as.id, gva, e.Frame().GPA(), at)
	}
}

// hugeLeaf is VisitLeaf for one of 2 MiB: all of it in one area, or in several that
// allow as much. Its block holds a reference to each frame, however many lead to it.
func (c *checker) hugeLeaf(gva addr.GVA, e pagetable.Entry) {
	block := e.Frame()
	if block%pagetable.HugeFrames != 0 || !c.mem.arena.Contains(block) || !c.mem.arena.Contains(block+pagetable.HugeFrames-1) {
		c.complain("space %d: 2 MiB leaf %#x at %v leads to no block", c.as.id, uint64(e), gva)
		return
	}
	if c.blocks[block]++; c.blocks[block] == 1 {
		for i := range addr.PFN(pagetable.HugeFrames) {
			c.refs[block+i]++
			c.data[block+i] = struct{}{}
		}
	}
	if e.Has(pagetable.Writable) && !e.Has(pagetable.Dirty) {
		c.complain("space %d: 2 MiB leaf %#x at %v may be written and is not dirty", c.as.id, uint64(e), gva)
	}
	areas, at := c.as.tree.Snapshot(), gva
	for end := hugeRange(gva).End; at < end; {
		a := areas.Find(at)
		c.allowed(a, at, e)
		if a == nil {
			return
		}
		at = a.End
	}
}

// allowed compares what a leaf allows with the area that is there.
func (c *checker) allowed(a *vmarea.Area, gva addr.GVA, e pagetable.Entry) {
	if a == nil {
		c.complain("space %d: page at %v belongs to no area", c.as.id, gva)
		return
	}
	perm := permOf(a.Prot)
	if e&^perm&(pagetable.Writable|pagetable.User) != 0 || perm.Has(pagetable.NoExec) && !e.Has(pagetable.NoExec) {
		c.complain("space %d: page at %v allows %#x, beyond its area (%v)", c.as.id, gva, uint64(e), a.Prot)
	}
	if e.Has(pagetable.Armed | pagetable.Writable) {
		c.complain("space %d: page at %v is armed and writable", c.as.id, gva)
	}
	shared := a.Flags&vmarea.Shared != 0
	if shared != e.Has(pagetable.Shared) {
		c.complain("space %d: page at %v: shared %v, its area %v", c.as.id, gva, e.Has(pagetable.Shared), shared)
	}
	if shared && e.Has(pagetable.Writable) {
		c.noted(a, gva)
	}
}

// objects counts what objects and the pins of closed spaces hold.
func (c *checker) objects() {
	for s := range c.mem.orphanPins() {
		c.pins(s)
	}
	c.mem.mu.Lock()
	defer c.mem.mu.Unlock()
	c.mem.leftHosted(func(f addr.PFN) { c.refs[f]++ })
	for o := range c.mem.objects {
		o.each(func(f addr.PFN) {
			c.refs[f]++
			c.data[f] = struct{}{}
		})
	}
}

// orphanPins returns the pin sets of closed spaces.
func (m *Memory) orphanPins() map[*pinSet]struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.orphans)
}

// isolation makes sure that no guest can reach a table or a frame of the
// platform's as memory: neither by a leaf nor by an object.
func (c *checker) isolation() {
	for f := range c.data {
		if level, ok := c.tables[f]; ok {
			c.complain("table %v of level %d is mapped as data", f, level)
		}
		if c.mem.isPrivileged(f) {
			c.complain("frame %v of the platform or of a table is mapped as data", f)
		}
	}
}

// counts compares the counts of all frames with the references found. What has
// a count and was not met must be the platform's.
func (c *checker) counts() {
	m := c.mem
	unmet := uint64(0)
	first := m.arena.First()
	m.pool.EachBlock(func(block addr.PFN, leaves uint32) {
		if leaves != c.blocks[block] {
			c.complain("block %v: %d leaves counted, but %d lead to it", block, leaves, c.blocks[block])
		}
	})
	for i := range m.arena.Len() {
		f := first + addr.PFN(i)
		n, refs := m.pool.Of(f), c.refs[f]
		switch {
		case n == refs:
		case refs == 0 && n == 1:
			unmet++
		default:
			c.complain("frame %v: count %d, but %d references", f, n, refs)
		}
	}
	if want := m.supervisorFrames.Load(); unmet != want {
		c.complain("%d frames are held by nobody known, %d by the platform", unmet, want)
	}
	if n := uint64(len(c.tables)); n != m.tables.Load() {
		c.complain("%d tables found, %d counted", n, m.tables.Load())
	}
	for f := range c.refs {
		if !m.arena.Contains(f) {
			c.complain("frame %v is outside of the memory", f)
		}
	}
}
