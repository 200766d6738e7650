package vmarea_test

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// A change takes write permission away from half of an area.
func Example() {
	t := vmarea.New(addr.Range{Start: 0x10000, End: 0x7ffffffff000})

	c := t.StartChange() // the change lock is held
	at, _ := c.FindGap(0x4000, addr.PageSize, 0x10000, 0x7ffffffff000, vmarea.TopDown)
	c.Insert(addr.Range{Start: at, End: at + 0x4000}, vmarea.Attr{Prot: vmarea.Read | vmarea.Write})
	c.Publish()
	c.EndWriteAll()

	r := addr.Range{Start: at, End: at + 0x2000}
	c = t.StartChange()
	c.SetProt(r, vmarea.Read) // edit; were c.Len() too large now: c.Abort()
	c.StartWrite(r)           // mark
	// Here the caller sweeps, waits for a grace period, and sweeps again.
	c.Publish()
	c.EndWriteAll() // unmark

	t.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
		fmt.Println(a)
		return true
	})
	// Output:
	// [0x7fffffffb000, 0x7fffffffd000) r--
	// [0x7fffffffd000, 0x7ffffffff000) rw-
}
