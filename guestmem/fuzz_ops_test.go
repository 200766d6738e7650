package guestmem

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// FuzzOps runs the operations that bytes stand for on this side and on a model
// of one byte array a page (fuzz_model_test.go): results, areas, and contents
// must be the same after each of them; every count at the end.
func FuzzOps(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := newOpWorld(worldOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := w.close(); err != nil {
				t.Error(err)
			}
		}()
		m := newFuzzFamily(w)
		for i, o := range decodeOps(b) {
			if len(w.pins) > 32 {
				w.pins[0].Release()
				w.pins = w.pins[1:]
			}
			m.noteLocks(w, o)
			got := applySoftware(w, o)
			if got.errno == syscall.ENOMEM && m.mayBeShort(o) {
				return // out of memory in earnest: the model has no end
			}
			if want := m.apply(w, o, got); !got.equal(want) {
				t.Fatalf("op %d %v answers %v, want %v", i, o, got, want)
			}
			if as := w.spaces[o.space]; as != nil {
				m.compareAreas(t, i, o, as)
			}
			if i%64 == 63 {
				mustCheck(t, w.mem)
			}
		}
		m.compareContents(t, w)
	})
}

// compareAreas compares the areas of a space with the model's pages.
func (m *fuzzFamily) compareAreas(t *testing.T, i int, o op, as *AddressSpace) {
	s := m.spaces[o.space]
	next := m.window.Start
	for a := range as.Areas() {
		for ; next < a.Start; next += page {
			if s.page(next) != nil {
				t.Fatalf("after op %d %v: %v is not mapped, but should be:\n%s", i, o, next, as)
			}
		}
		for ; next < a.End; next += page {
			if p := s.page(next); p == nil || p.prot != a.Prot || (p.shared != nil) != a.Shared {
				t.Fatalf("after op %d %v: %v is in %+v, want %+v:\n%s", i, o, next, a, p, as)
			}
		}
	}
	for ; next < m.window.End; next += page {
		if s.page(next) != nil {
			t.Fatalf("after op %d %v: %v is not mapped, but should be:\n%s", i, o, next, as)
		}
	}
}

// compareContents reads every page that was ever written.
func (m *fuzzFamily) compareContents(t *testing.T, w *opWorld) {
	var buf [page]byte
	for slot, as := range w.spaces {
		if as == nil {
			continue
		}
		for n, p := range m.spaces[slot].pages {
			if p == nil || p.guard || p.prot == ProtNone || p.isFresh() || p.trouble(Read) != noTrouble {
				continue
			}
			gva := m.window.Start + addr.GVA(n)*page
			if _, err := as.ReadAt(ctx, buf[:], gva); err != nil || !bytes.Equal(buf[:], p.bytes()) {
				t.Fatalf("space %d reads %.16x at %v (%v), want %.16x", slot, buf, gva, err, p.bytes())
			}
		}
	}
}

// TestFuzzModelSeesWrongAnswers holds the model against answers that are wrong:
// one that agrees with everything proves nothing.
func TestFuzzModelSeesWrongAnswers(t *testing.T) {
	w, err := newOpWorld(worldOptions{})
	mustDo(t, err)
	defer func() { mustDo(t, w.close()) }()
	m := newFuzzFamily(w)
	base := defaultWindow.Start
	for _, o := range []op{
		{kind: opMap, at: base, length: 4 * page, prot: rw, flags: anon | MapFixed},
		{kind: opWriteAt, at: base + 100, length: 5000, data: 17},
		{kind: opReadAt, at: base, length: 2 * page},
		{kind: opUnmap, at: base + 2*page, length: page},
		{kind: opProtect, at: base, length: 4 * page, prot: r_},
		{kind: opStore64, at: base, data: 5},
		{kind: opTouch, at: base + 2*page, prot: Read},
	} {
		got := applySoftware(w, o)
		if want := m.apply(w, o, got); !got.equal(want) {
			t.Fatalf("%v answers %v, want %v", o, got, want)
		}
		for _, wrong := range []func(*result){
			func(r *result) { r.errno ^= 1 },
			func(r *result) { r.trouble ^= 1 },
		} {
			bad := got
			wrong(&bad)
			if bad.equal(got) {
				t.Errorf("%v: %v is taken for %v", o, bad, got)
			}
		}
	}
	if got := m.spaces[0].page(base + page).bytes()[0]; got != patternOf(17, 5000)[page-100] {
		t.Errorf("the model holds %d", got)
	}
	if m.spaces[0].page(base+2*page) != nil || m.spaces[0].page(base).prot != r_ || m.spaces[0].page(base+3*page).prot != rw {
		t.Error("the model has other areas")
	}
}

// seedOps puts operations into the form that decodeOps takes apart: bytes that
// are drawn at random do, since every byte string is a sequence.
func seedOps(n int, seed byte) []byte {
	b := make([]byte, n)
	x := binary.LittleEndian.Uint64([]byte{seed, 1, 2, 3, 4, 5, 6, 7})
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
}

// Without -fuzz, sequences of a few thousand bytes besides the corpus.
func TestFuzzOpsByChance(t *testing.T) {
	for seed := range byte(8) {
		w, err := newOpWorld(worldOptions{})
		mustDo(t, err)
		m := newFuzzFamily(w)
		for i, o := range decodeOps(seedOps(3000, seed)) {
			m.noteLocks(w, o)
			got := applySoftware(w, o)
			if got.errno == syscall.ENOMEM && m.mayBeShort(o) {
				break
			}
			if want := m.apply(w, o, got); !got.equal(want) {
				t.Fatalf("seed %d, op %d %v answers %v, want %v", seed, i, o, got, want)
			}
			if as := w.spaces[o.space]; as != nil {
				m.compareAreas(t, i, o, as)
			}
		}
		m.compareContents(t, w)
		mustDo(t, w.close())
	}
}
