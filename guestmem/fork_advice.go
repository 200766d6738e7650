package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// What a child does not get as its parent has it. The area tree lists those
// areas, so that a fork looks at no others; the child is made as if all were
// shared, and then loses them before anybody can see it.

// emptyForked takes the pages out of a child's table that are not for it.
//
// Preconditions: nobody uses the child yet: nothing has to be waited for, and
// what it loses is dropped at once.
//
// Errors: ErrNoMemory, for the tables at the ends of areas; the caller gives the
// child's root back.
func (as *AddressSpace) emptyForked(listed []*vmarea.Area) error {
	c := &changeUnderWay{as: as, tok: as.pt.LockChange()}
	defer as.pt.UnlockChange(c.tok)
	for _, a := range listed {
		if a.Flags&(vmarea.DontFork|vmarea.WipeOnFork) == 0 {
			continue
		}
		s := sweptPool.Get().(*swept)
		if err := c.firstZap(a.Range, a.Range, s); err != nil {
			c.recycle(s)
			return err
		}
		c.drop(s)
	}
	return nil
}

// leaveForked takes the locks off a child's areas, and their monitors unless those
// have children for it, and the areas out of a child's tree that are not for it, and
// their pages out of what it counts of objects, which it has no references to yet.
//
// Preconditions: as emptyForked.
func (as *AddressSpace) leaveForked(listed []*vmarea.Area, monitors map[*Monitor]*Monitor) {
	if len(listed) == 0 {
		return
	}
	c := as.tree.StartChange()
	for _, a := range listed {
		if a.Flags&vmarea.DontFork == 0 {
			c.SetFlags(a.Range, 0, lockFlags)
			if a.Watch != nil {
				c.SetWatch(a.Range, watchOfChild(a, monitors))
			}
			continue
		}
		c.Remove(a.Range)
		if o, ok := a.Backing.(*Object); ok {
			if as.objects[o] -= a.Len() / addr.PageSize; as.objects[o] == 0 {
				delete(as.objects, o)
			}
		}
	}
	c.Publish()
	c.EndWriteAll()
}
