package vmarea

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Labels split and merge areas, and those that are to be listed are, after every
// edit, an abort and a fork.
func TestSetFlagsAndListed(t *testing.T) {
	const page = addr.PageSize
	at := func(from, to addr.GVA) addr.Range { return addr.Range{Start: from * page, End: to * page} }
	tree := New(at(1, 1000))
	listed := func(c *Change) (n int) {
		for _, a := range c.Listed() {
			n += int(a.Len() / page)
		}
		return n
	}
	c := tree.StartChange()
	c.Insert(at(10, 20), Attr{Prot: Read})
	c.Insert(at(30, 40), Attr{Prot: Read, Flags: Locked})
	c.SetFlags(at(12, 35), DontFork, 0)
	if n := listed(c); n != 8+10 || c.Len() != 4 {
		t.Errorf("%d pages listed of %d areas", n, c.Len())
	}
	c.Publish()
	c.EndWriteAll()

	c = tree.StartChange()
	c.Remove(at(15, 33))
	c.SetFlags(at(33, 40), 0, Locked|DontFork)
	c.Abort()
	c = tree.StartChange()
	if n := listed(c); n != 18 || c.Len() != 4 {
		t.Errorf("after an abort: %d pages listed of %d areas", n, c.Len())
	}
	c.StartWriteAll()
	child := c.Fork()
	c.SetFlags(at(1, 1000), 0, ^Flags(0))
	if n := listed(c); n != 0 || c.Len() != 2 {
		t.Errorf("without labels: %d pages listed of %d areas", n, c.Len())
	}
	c.Publish()
	c.EndWriteAll()
	for _, x := range []*Tree{tree, child} {
		if err := x.CheckInvariants(); err != nil {
			t.Error(err)
		}
	}
	c = child.StartChange()
	if n := listed(c); n != 18 {
		t.Errorf("the child lists %d pages", n)
	}
	c.Abort()
}
