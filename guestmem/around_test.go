package guestmem

import (
	"bytes"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func newAroundMemory(t *testing.T, pages int) *Memory {
	t.Helper()
	m, err := NewMemory(MemoryOptions{Size: 16 << 20, FaultAround: pages})
	mustDo(t, err)
	t.Cleanup(func() {
		mustCheck(t, m)
		for _, as := range m.sortedSpaces() {
			mustDo(t, as.Close())
		}
		if s := m.Stats(); s.FramesInUse != 0 {
			t.Errorf("left in use: %+v", s)
		}
		mustDo(t, m.Close())
	})
	return m
}

// present counts the pages that are there in [gva, gva+n pages).
func present(as *AddressSpace, gva addr.GVA, n int) (count int) {
	for i := range n {
		if as.leafEntry(gva+addr.GVA(i)*page) != 0 {
			count++
		}
	}
	return count
}

func TestFaultAroundInstallsPagesOfAnObject(t *testing.T) {
	m := newAroundMemory(t, 16)
	as := newSpace(t, m)
	content := strings.Repeat("0123456789abcdef", 40*page/16)
	reads := 0
	src := readerAtFunc(func(p []byte, off int64) (int, error) {
		reads++
		return strings.NewReader(content).ReadAt(p, off)
	})
	o, err := m.NewFileObject(src, int64(len(content)), "file")
	mustDo(t, err)
	defer o.Close()
	base := mustMap(t, as, MapOptions{Addr: 0x40000000, Length: 40 * page, Prot: ProtRead | ProtWrite, Flags: MapPrivate | MapFixed, Object: o})

	mustDo(t, as.Fault(ctx, base+5*page, Read))
	if n := present(as, base, 40); n != 16 || reads != 1 {
		t.Errorf("%d pages after one fault by %d reads, want the window of 16 by one", n, reads)
	}
	mustDo(t, as.Fault(ctx, base+35*page, Read))
	if n := present(as, base+32*page, 8); n != 8 {
		t.Errorf("%d pages at the end, want the 8 that there are", n)
	}
	// A write copies one page, and the file's stays what it is.
	before := m.Stats().Copied
	mustWrite(t, as, base+6*page, []byte("private"))
	if n := m.Stats().Copied - before; n != 1 {
		t.Errorf("a write copied %d pages", n)
	}
	other := newSpace(t, m)
	mustMap(t, other, MapOptions{Addr: base, Length: 40 * page, Prot: ProtRead, Flags: MapPrivate | MapFixed, Object: o})
	if got := mustRead(t, other, base, 40*page); !bytes.Equal(got, []byte(content)) {
		t.Error("another space reads something else than the file")
	}
}

func TestFaultAroundGoesAheadInOrderOnly(t *testing.T) {
	m := newAroundMemory(t, 16)
	as := newSpace(t, m)
	base := mapAt(t, as, 0x40000000, 64*page, ProtRead|ProtWrite)
	mustDo(t, as.Fault(ctx, base+20*page, Write))
	if n := present(as, base, 64); n != 1 {
		t.Errorf("%d pages after a lone fault", n)
	}
	mustDo(t, as.Fault(ctx, base+21*page, Write))
	if n := present(as, base, 64); n < 2 || n > 12 || present(as, base+32*page, 32) != 0 || present(as, base, 20) != 0 {
		t.Errorf("%d pages after a fault next to the last: not those ahead, up to the window's end", n)
	}
	for i := range addr.GVA(64) {
		mustSee(t, as, base+i*page, make([]byte, page))
	}
}

// Neighbours of another area, with other permissions, are left alone.
func TestFaultAroundStaysInTheArea(t *testing.T) {
	m := newAroundMemory(t, 64)
	as := newSpace(t, m)
	o, err := m.NewFileObject(strings.NewReader(strings.Repeat("x", 64*page)), 64*page, "file")
	mustDo(t, err)
	defer o.Close()
	base := mustMap(t, as, MapOptions{Addr: 0x40000000, Length: 64 * page, Prot: ProtRead, Flags: MapPrivate | MapFixed, Object: o})
	mustDo(t, as.Protect(base+8*page, 8*page, ProtNone))
	mustDo(t, as.Unmap(base+24*page, 8*page))
	mustDo(t, as.Fault(ctx, base, Read))
	if present(as, base, 8) != 8 || present(as, base+8*page, 56) != 0 {
		t.Errorf("%d pages in the area, %d beyond it", present(as, base, 8), present(as, base+8*page, 56))
	}
}

type readerAtFunc func([]byte, int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
