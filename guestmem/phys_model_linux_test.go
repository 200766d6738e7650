package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// physModel is a memory and what it should be: for each region its bytes, which
// of its pages are dirty, and the slices held.
type physModel struct {
	t       *testing.T
	m       *Memory
	regions map[addr.GPA]*physRegion
	slices  []*physSlice
	slots   *slotModel
	undo    []func()
}

type physRegion struct {
	r     *Region
	bytes []byte
	dirty map[uint64]bool
}

type physSlice struct {
	s     *Slice
	owner *physRegion
}

// The model's addresses: eight places of eight pages.
const (
	physPlaces = 8
	physPages  = 8
	physSize   = physPages * page
)

func (w *physModel) at(rt *rapid.T) addr.GPA {
	return addr.GPA(rapid.Uint64Range(0, physPlaces*physSize+100).Draw(rt, "gpa"))
}

func (w *physModel) find(gpa addr.GPA) *physRegion {
	for base, x := range w.regions {
		if gpa >= base && uint64(gpa-base) < uint64(len(x.bytes)) {
			return x
		}
	}
	return nil
}

func (w *physModel) pick(rt *rapid.T) *physRegion {
	if len(w.regions) == 0 {
		return nil
	}
	var bases []addr.GPA
	for i := range addr.GPA(physPlaces * physPages) {
		if w.regions[i*page] != nil {
			bases = append(bases, i*page)
		}
	}
	return w.regions[rapid.SampledFrom(bases).Draw(rt, "region")]
}

func (w *physModel) held(x *physRegion, first, n uint64) bool {
	for _, s := range w.slices {
		if s.owner == x && s.s.first < first+n && first < s.s.first+s.s.n {
			return true
		}
	}
	return false
}

// reach is how far from gpa an access of n bytes gets, at most.
func (w *physModel) reach(gpa addr.GPA, n int) int {
	done := 0
	for done < n {
		x := w.find(gpa + addr.GPA(done))
		if x == nil {
			break
		}
		done += min(n-done, len(x.bytes)-int(gpa+addr.GPA(done)-x.r.Base()))
	}
	return done
}

func (w *physModel) add(rt *rapid.T) {
	backing := rapid.SampledFrom([]Backing{BackingMemfd, BackingAnonymous, BackingFile, BackingFilePrivate, BackingForeign}).Draw(rt, "backing")
	o := RegionOptions{
		Backing: backing,
		Base:    addr.GPA(rapid.Uint64Range(0, physPlaces*physPages-1).Draw(rt, "page") * page),
		Size:    rapid.Uint64Range(1, physPages).Draw(rt, "pages") * page,
	}
	b := make([]byte, o.Size)
	switch backing {
	case BackingFile, BackingFilePrivate:
		f := testFile(w.t, int(o.Size)+page)
		o.File, o.Offset = f, page
		copy(b, filePattern(int(o.Size) + page)[page:])
	case BackingForeign:
		flags := rapid.SampledFrom([]int{unix.MAP_PRIVATE, unix.MAP_SHARED}).Draw(rt, "sharing")
		h, err := unix.Mmap(-1, 0, int(o.Size), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_ANONYMOUS)
		if err != nil {
			rt.Fatal(err)
		}
		w.undo = append(w.undo, func() { unix.Munmap(h) })
		o.Mapping = hvaOf(h)
	}
	overlaps := false
	for base, x := range w.regions {
		overlaps = overlaps || uint64(o.Base) < uint64(base)+uint64(len(x.bytes)) && uint64(base) < uint64(o.Base)+o.Size
	}
	r, err := w.m.AddRegion(o)
	if overlaps {
		if !errors.Is(err, ErrExists) {
			rt.Fatalf("an overlapping region: %v", err)
		}
		return
	}
	if err != nil {
		rt.Fatal(err)
	}
	w.regions[o.Base] = &physRegion{r: r, bytes: b, dirty: make(map[uint64]bool)}
}

func (w *physModel) remove(rt *rapid.T) {
	x := w.pick(rt)
	if x == nil {
		return
	}
	busy := w.held(x, 0, physPages)
	if err := w.m.RemoveRegion(x.r); busy != errors.Is(err, ErrBusy) || !busy && err != nil {
		rt.Fatalf("removal, slices held %v: %v", busy, err)
	} else if err == nil {
		delete(w.regions, x.r.Base())
	}
}

func (w *physModel) write(rt *rapid.T) {
	gpa, p := w.at(rt), rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(rt, "bytes")
	if rapid.Bool().Draw(rt, "long") {
		p = bytes.Repeat(p, 700)
	}
	n, err := w.m.WriteAt(p, gpa)
	want := w.reach(gpa, len(p))
	if n != want || (err == nil) != (n == len(p)) || err != nil && !errors.Is(err, ErrNoRegion) {
		rt.Fatalf("WriteAt(%v, %d bytes) = %d, %v; want %d", gpa, len(p), n, err, want)
	}
	for i := range n {
		at := gpa + addr.GPA(i)
		x := w.find(at)
		x.bytes[at-x.r.Base()] = p[i]
		x.dirty[x.r.pageOf(at)] = true
	}
}

func (w *physModel) read(rt *rapid.T) {
	gpa := w.at(rt)
	p := make([]byte, rapid.SampledFrom([]int{1, 8, 8, 100, 3 * page, 100 * page}).Draw(rt, "length"))
	n, err := w.m.ReadAt(p, gpa)
	if want := w.reach(gpa, len(p)); n != want || (err == nil) != (n == len(p)) {
		rt.Fatalf("ReadAt(%v, %d bytes) = %d, %v; want %d", gpa, len(p), n, err, want)
	}
	for i := range n {
		at := gpa + addr.GPA(i)
		if x := w.find(at); x.bytes[at-x.r.Base()] != p[i] {
			rt.Fatalf("at %v: %#x, want %#x", at, p[i], x.bytes[at-x.r.Base()])
		}
	}
}

func (w *physModel) word(rt *rapid.T) {
	gpa, v := w.at(rt)&^7, rapid.Uint64().Draw(rt, "word")
	x := w.find(gpa)
	err := w.m.Store64(gpa, v)
	if x == nil {
		if !errors.Is(err, ErrNoRegion) {
			rt.Fatalf("Store64(%v): %v", gpa, err)
		}
		return
	}
	if err != nil {
		rt.Fatal(err)
	}
	for i := range addr.GPA(8) {
		x.bytes[gpa-x.r.Base()+i] = byte(v >> (8 * i))
	}
	x.dirty[x.r.pageOf(gpa)] = true
	if got, err := w.m.Load16(gpa + 2); got != uint16(v>>16) || err != nil {
		rt.Fatalf("Load16(%v) = %#x, %v; want %#x", gpa+2, got, err, uint16(v>>16))
	}
}

func (w *physModel) hold(rt *rapid.T) {
	x := w.pick(rt)
	if x == nil {
		return
	}
	off := rapid.IntRange(0, len(x.bytes)-1).Draw(rt, "offset")
	n := rapid.IntRange(1, len(x.bytes)-off).Draw(rt, "size")
	access := rapid.SampledFrom([]Access{Read, Write}).Draw(rt, "access")
	s, err := w.m.Slice(x.r.Base()+addr.GPA(off), uint64(n), access)
	if err != nil {
		rt.Fatal(err)
	}
	if b := s.Bytes(); b != nil {
		if !bytes.Equal(b, x.bytes[off:off+n]) {
			rt.Fatal("the slice has other bytes")
		}
		if access == Write {
			b[0]++
			x.bytes[off]++
		}
	} else if !x.r.guarded {
		rt.Fatal("no bytes")
	}
	w.slices = append(w.slices, &physSlice{s, x})
}

func (w *physModel) letGo(rt *rapid.T) {
	if len(w.slices) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.slices)-1).Draw(rt, "slice")
	w.letGoOf(i)
}

func (w *physModel) letGoOf(i int) {
	s := w.slices[i]
	s.s.Release()
	if s.s.access == Write {
		for p := s.s.first; p < s.s.first+s.s.n; p++ {
			s.owner.dirty[p] = true
		}
	}
	w.slices = append(w.slices[:i], w.slices[i+1:]...)
}

func (w *physModel) discard(rt *rapid.T) {
	x := w.pick(rt)
	if x == nil {
		return
	}
	first := rapid.Uint64Range(0, x.r.nPages()-1).Draw(rt, "first")
	n := rapid.Uint64Range(1, x.r.nPages()-first).Draw(rt, "pages")
	busy := w.held(x, first, n)
	if err := w.m.Discard(x.r.gpaOf(first), n*page); busy != errors.Is(err, ErrBusy) || !busy && err != nil {
		rt.Fatalf("discard, slices held %v: %v", busy, err)
	} else if err == nil {
		clear(x.bytes[first*page : (first+n)*page])
		for p := first; p < first+n; p++ {
			x.dirty[p] = true
		}
	}
}

func (w *physModel) harvest(rt *rapid.T) {
	x := w.pick(rt)
	if x == nil {
		return
	}
	want := make(map[uint64]bool)
	for p := range x.dirty {
		want[p] = true
	}
	for _, s := range w.slices {
		if s.owner == x && s.s.access == Write {
			for p := s.s.first; p < s.s.first+s.s.n; p++ {
				want[p] = true
			}
		}
	}
	if got := harvestOf(w.t, w.m, x.r); fmt.Sprint(got) != fmt.Sprint(want) {
		rt.Fatalf("dirty: %v, want %v", got, want)
	}
	x.dirty = make(map[uint64]bool)
}

// sealAndClone goes on with a clone of a template of the memory.
func (w *physModel) sealAndClone(rt *rapid.T) {
	tmpl, err := w.m.Seal()
	if len(w.slices) > 0 || len(w.regions) == 0 {
		if err == nil {
			rt.Fatal("Seal of a memory with slices held, or without regions")
		}
		return
	}
	if err != nil {
		rt.Fatal(err)
	}
	w.m.DetachListener(w.slots)
	sealed := w.m
	if w.m, err = tmpl.Clone(CloneOptions{}); err != nil {
		rt.Fatal(err)
	}
	if err := errors.Join(tmpl.Close(), sealed.Close(), w.m.AttachListener(w.slots)); err != nil {
		rt.Fatal(err)
	}
	for _, r := range w.m.Regions() {
		x := w.regions[r.Base()]
		x.r, x.dirty = r, make(map[uint64]bool)
	}
}

func (w *physModel) check(rt *rapid.T) {
	if len(w.m.Regions()) != len(w.regions) || fmt.Sprint(w.slots.regions) != fmt.Sprint(w.m.Regions()) {
		rt.Fatalf("regions %v, slots %v, model %d", w.m.Regions(), w.slots.regions, len(w.regions))
	}
	p := make([]byte, physSize)
	for base, x := range w.regions {
		if n, err := w.m.ReadAt(p[:len(x.bytes)], base); err != nil || !bytes.Equal(p[:n], x.bytes) {
			rt.Fatalf("region %v holds other bytes (%v)", x.r, err)
		}
	}
}

// A memory of regions of every kind behaves as the model says, whatever is done
// to it in whatever order, and the host has nothing of it at the end.
func TestPhysicalMemoryModel(t *testing.T) {
	unchangedHost(t)
	rapid.Check(t, func(rt *rapid.T) {
		m, err := NewMemory(MemoryOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		w := &physModel{t: t, m: m, regions: make(map[addr.GPA]*physRegion), slots: &slotModel{}}
		defer func() {
			w.m.DetachListener(w.slots)
			for len(w.slices) > 0 {
				w.letGoOf(0)
			}
			if err := w.m.Close(); err != nil {
				rt.Errorf("Close: %v", err)
			}
			for _, fn := range w.undo {
				fn()
			}
		}()
		if err := m.AttachListener(w.slots); err != nil {
			rt.Fatal(err)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"add": w.add, "add2": w.add, "remove": w.remove, "write": w.write, "write2": w.write,
			"read": w.read, "word": w.word, "hold": w.hold, "letGo": w.letGo, "discard": w.discard,
			"harvest": w.harvest, "sealAndClone": w.sealAndClone, "": w.check,
		})
	})
}
