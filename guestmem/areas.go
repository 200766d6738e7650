package guestmem

import (
	"fmt"
	"iter"
	"strings"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// AreaInfo describes one area.
type AreaInfo struct {
	addr.Range
	Prot   Prot
	Shared bool
	// Offset is that of the area's start in its object, 0 for anonymous memory.
	Offset uint64
	// Name is the object's name, or a label such as "[heap]", or "[anon:x]" for what
	// SetName has called x, "[anon_shmem:x]" if it is shared.
	Name string
}

func (as *AddressSpace) infoOf(a *vmarea.Area) AreaInfo {
	i := AreaInfo{Range: a.Range, Prot: a.Prot, Shared: a.Flags&vmarea.Shared != 0, Offset: a.Offset}
	name, named := as.mem.names.nameOf(a)
	switch {
	case named && a.Backing != nil:
		i.Name = "[anon_shmem:" + name + "]"
	case a.Backing != nil:
		i.Name = a.Backing.BackingName()
	case a.Flags&vmarea.Heap != 0:
		i.Name = "[heap]"
	case a.Flags&vmarea.Stack != 0:
		i.Name = "[stack]"
	case a.Flags&vmarea.VDSO != 0:
		i.Name = "[vdso]"
	case named:
		i.Name = "[anon:" + name + "]"
	}
	return i
}

// Areas iterates over the areas in address order, as they were when the
// iteration began. It waits for nobody.
func (as *AddressSpace) Areas() iter.Seq[AreaInfo] {
	return func(yield func(AreaInfo) bool) {
		as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool { return yield(as.infoOf(a)) })
	}
}

// FindArea returns the area that contains gva. It waits for nobody.
func (as *AddressSpace) FindArea(gva addr.GVA) (AreaInfo, bool) {
	a := as.tree.Snapshot().Find(gva)
	if a == nil {
		return AreaInfo{}, false
	}
	return as.infoOf(a), true
}

// String lists the areas in the format of /proc/PID/maps. Source: proc(5).
func (as *AddressSpace) String() string {
	var b strings.Builder
	for i := range as.Areas() {
		perm := []byte(i.Prot.String() + "p")
		if i.Shared {
			perm[3] = 's'
		}
		line := fmt.Sprintf("%08x-%08x %s %08x 00:00 0", uint64(i.Start), uint64(i.End), perm, i.Offset)
		if i.Name != "" {
			line = fmt.Sprintf("%-72s %s", line, i.Name)
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}
