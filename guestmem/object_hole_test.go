package guestmem

import (
	"bytes"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Reading where nobody has written takes no frames, as with a file of tmpfs: an
// object that is larger than all memory can be read from end to end.
func TestReadOfAHoleTakesNoFrame(t *testing.T) {
	m := newMemory(t, 1<<20)
	const size = 64 << 20
	o := newObject(t, m, nil, nil, size-100)
	buf := bytes.Repeat([]byte{0xee}, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, err := o.ReadAt(ctx, buf, off)
		if want := min(len(buf), size-100-int(off)); n != want || (err != nil) != (n < len(buf)) {
			t.Fatalf("read at %#x: %d bytes, %v", off, n, err)
		}
		if !bytes.Equal(buf[:n], make([]byte, n)) {
			t.Fatalf("read at %#x: not zeroes", off)
		}
	}
	if n := m.Stats().ObjectPages; n != 0 {
		t.Errorf("%d pages were taken", n)
	}
}

// What was stored through an area is read, and what is around it is a hole still; what
// was cut off is one again.
func TestReadSeesStoresBesideHoles(t *testing.T) {
	m := newMemory(t, 1<<20)
	o := newObject(t, m, nil, nil, 4*page)
	as := newSpace(t, m)
	at := mustMap(t, as, MapOptions{Length: 4 * page, Prot: rw, Flags: MapShared, Object: o})
	mustWrite(t, as, at+page+addr.PageSize/2, []byte("here"))
	got, want := make([]byte, 4*page), make([]byte, 4*page)
	copy(want[page+page/2:], "here")
	read := func(pages uint64) {
		t.Helper()
		if n, err := o.ReadAt(ctx, got, 0); err != nil || n != len(got) || !bytes.Equal(got, want) {
			t.Errorf("read: %d bytes, %v, as wanted: %v", n, err, bytes.Equal(got, want))
		}
		if n := m.Stats().ObjectPages; n != pages {
			t.Errorf("the object has %d pages, want %d", n, pages)
		}
	}
	read(1)
	mustDo(t, o.Truncate(int64(page)))
	mustDo(t, o.Truncate(4*int64(page)))
	clear(want)
	read(0)
	mustCheck(t, m)
}
