package vmarea_test

import (
	"testing"
	"unsafe"

	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/vmarea"
)

func TestAreaIsSmall(t *testing.T) {
	if invariants.Enabled {
		t.Skip("areas are larger under -tags invariants and -race: they count their readers")
	}
	if n := unsafe.Sizeof(vmarea.Area{}); n > 48 {
		t.Errorf("an area has %d bytes", n)
	}
}

func TestProtString(t *testing.T) {
	for p, want := range map[vmarea.Prot]string{
		vmarea.None:                    "---",
		vmarea.Read | vmarea.Write:     "rw-",
		vmarea.Read | vmarea.Exec:      "r-x",
		vmarea.Write:                   "-w-",
		vmarea.Read | vmarea.Write | 4: "rwx",
	} {
		if got := p.String(); got != want {
			t.Errorf("Prot(%d) = %q, want %q", p, got, want)
		}
	}
}

func TestOffsetOf(t *testing.T) {
	f := newFile("f")
	tree := newTree(t, pages(0, 16))
	change(tree, func(c *vmarea.Change) {
		c.Insert(pages(2, 4), vmarea.Attr{Prot: vmarea.Read, Backing: f, Offset: 7 * page})
		c.Insert(pages(6, 8), vmarea.Attr{Prot: vmarea.Read, Offset: 99})
	})
	s := tree.Snapshot()
	if got := s.Find(gva(3)).OffsetOf(gva(3) + 5); got != 8*page+5 {
		t.Errorf("OffsetOf in a file = %#x", got)
	}
	anon := s.Find(gva(6))
	if anon.Offset != 0 || anon.OffsetOf(gva(7)) != 0 {
		t.Errorf("anonymous area: offset %#x, %#x", anon.Offset, anon.OffsetOf(gva(7)))
	}
}
