package arena

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

const first addr.PFN = 0x100

func newArena(n int) (Arena, []byte) {
	mem := make([]byte, n*addr.PageSize)
	return New(mem, first), mem
}

// outside are numbers that a hostile table may hold, and some that it cannot.
var outside = []addr.PFN{0, 1, first - 1, first + 3, 1<<40 - 1, 1 << 51, 1 << 52, 1<<52 + first, ^addr.PFN(0)}

func TestFramesLieWhereTheyShould(t *testing.T) {
	a, mem := newArena(3)
	if a.First() != first || a.Len() != 3 {
		t.Errorf("First %v, Len %d", a.First(), a.Len())
	}
	for i := range addr.PFN(3) {
		f := first + i
		b := a.Bytes(f)
		if len(b) != addr.PageSize || &b[0] != &mem[i*addr.PageSize] {
			t.Errorf("Bytes(%v) are elsewhere", f)
		}
		for _, at := range []uint64{0, 1, 255, 511} {
			p := a.Entry(f, at)
			*p = uint64(f)<<32 | at
			if got := a.Load(f, at); got != *p {
				t.Errorf("Load(%v, %d) = %#x", f, at, got)
			}
			if got := a.LoadAt(f.GPA(), at); got != *p {
				t.Errorf("LoadAt(%v, %d) = %#x", f.GPA(), at, got)
			}
			if got := a.Table(f)[at]; got != *p {
				t.Errorf("Table(%v)[%d] = %#x", f, at, got)
			}
			if p != a.Word64(f, at*8) || a.Word32(f, at*8) == a.Word32(f, at*8+4) {
				t.Errorf("words of %v at entry %d", f, at)
			}
		}
		if !a.Contains(f) || !a.ContainsAt(f.GPA()) {
			t.Errorf("Contains(%v) = false", f)
		}
	}
	*a.Word32(first, 12) = 0x01020304
	if !bytes.Equal(a.Bytes(first)[12:16], []byte{4, 3, 2, 1}) {
		t.Error("Word32 is elsewhere")
	}
	a.Copy(first+2, first)
	if !bytes.Equal(a.Bytes(first+2), a.Bytes(first)) {
		t.Error("Copy")
	}
	a.Zero(first)
	if !bytes.Equal(a.Bytes(first), make([]byte, addr.PageSize)) || bytes.Equal(a.Bytes(first+1), make([]byte, addr.PageSize)) {
		t.Error("Zero cleared something else")
	}
}

// Bytes that are no whole frame are not the arena's.
func TestPartialFrameIsOutside(t *testing.T) {
	mem := make([]byte, 2*addr.PageSize-1)
	a := New(mem, first)
	if a.Len() != 1 || a.Contains(first+1) || a.LoadAt((first+1).GPA(), 0) != 0 {
		t.Error("a partial frame is inside")
	}
	runtime.KeepAlive(mem)
}

// A frame number that is outside, wherever it came from, reads as an absent
// entry and cannot be written.
func TestR14FramesOutside(t *testing.T) {
	a, mem := newArena(3)
	for i := range mem {
		mem[i] = 0xff
	}
	for _, f := range outside {
		if a.Contains(f) || a.Load(f, 5) != 0 || a.Entry(f, 5) != nil {
			t.Errorf("frame %v is inside", f)
		}
		if f < 1<<52 && (a.ContainsAt(f.GPA()) || a.LoadAt(f.GPA(), 5) != 0) {
			t.Errorf("address %v is inside", f.GPA())
		}
		for what, fn := range map[string]func(){
			"Table": func() { a.Table(f) }, "Bytes": func() { a.Bytes(f) }, "Word32": func() { a.Word32(f, 0) },
			"Word64": func() { a.Word64(f, 0) }, "Zero": func() { a.Zero(f) },
			"Copy from": func() { a.Copy(first, f) }, "Copy to": func() { a.Copy(f, first) },
		} {
			testutil.Panics(t, what+" of frame "+f.String(), fn)
		}
	}
	// Indexes and offsets stay inside the frame whatever they are.
	a, mem = newArena(1)
	for _, i := range []uint64{512, 513, 1 << 40, ^uint64(0)} {
		*a.Entry(first, i%EntriesPerTable) = i
		if a.Load(first, i) != i || *a.Entry(first, i) != i || a.LoadAt(first.GPA(), i) != i {
			t.Errorf("index %#x is not taken modulo the table", i)
		}
		a.Word32(first, i)
		a.Word64(first, i)
	}
	runtime.KeepAlive(mem)
}
