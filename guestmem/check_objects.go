package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// mapped compares how many pages of each object an address space says that it maps
// with its areas: who takes pages out of an object, or withholds stores to them, passes
// over the spaces that say none.
func (c *checker) mapped(as *AddressSpace) {
	found := make(map[*Object]uint64)
	as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
		if o, ok := a.Backing.(*Object); ok {
			found[o] += a.Len() / addr.PageSize
		}
		return true
	})
	for o, n := range found {
		if as.objects[o] != n {
			c.complain("space %d maps %d pages of %s, and counts %d", as.id, n, o.name, as.objects[o])
		}
	}
	for o, n := range as.objects {
		if _, ok := found[o]; !ok {
			c.complain("space %d maps no page of %s, and counts %d", as.id, o.name, n)
		}
	}
}

// noted makes sure that a page which a shared leaf may write counts as changed, if its
// object is written back. Who writes back takes the mark off first and the permission
// then; beside that nothing is said.
func (c *checker) noted(a *vmarea.Area, gva addr.GVA) {
	o, ok := a.Backing.(*Object)
	if !ok || !o.tracks() || !o.syncing.TryLock() { // which is above the change locks held here
		return
	}
	defer o.syncing.Unlock()
	index := a.OffsetOf(gva) / addr.PageSize
	if p := o.find(index); p == nil || p.Load()&changed == 0 {
		c.complain("space %d: page at %v may be written, and page %d of %s is not marked as changed", c.as.id, gva, index, o.name)
	}
}
