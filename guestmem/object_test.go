package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// countingReader counts reads, and may hold them up until all have come.
type countingReader struct {
	data  []byte
	reads atomic.Int64
	meet  *sync.WaitGroup
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	r.reads.Add(1)
	if r.meet != nil {
		r.meet.Done()
		r.meet.Wait()
	}
	return bytes.NewReader(r.data).ReadAt(p, off)
}

func newFile(tb testing.TB, m *Memory, src io.ReaderAt, size int64) *Object {
	tb.Helper()
	o, err := m.NewFileObject(src, size, "file")
	mustDo(tb, err)
	return o
}

func mapFile(tb testing.TB, as *AddressSpace, o *Object, pages int, prot Prot) addr.GVA {
	tb.Helper()
	return mustMap(tb, as, MapOptions{Length: uint64(pages) * page, Prot: prot, Flags: MapPrivate, Object: o})
}

func objects(m *Memory) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.objects)
}

// Everybody shares the object's pages until he writes, and then has his own.
func TestObjectIsSharedBySpacesAndForks(t *testing.T) {
	m := newMemory(t, 16<<20)
	const pages = 70 // two nodes of its tree
	src := &countingReader{data: bytes.Repeat([]byte("file"), pages*int(page)/4)}
	o := newFile(t, m, src, pages*int64(page))
	var spaces []*AddressSpace
	var at []addr.GVA
	for range 3 {
		as := newSpace(t, m)
		spaces, at = append(spaces, as), append(at, mapFile(t, as, o, pages, rw))
	}
	for i := range 3 {
		spaces, at = append(spaces, mustFork(t, spaces[i])), append(at, at[i])
	}
	for i, as := range spaces {
		if got := mustRead(t, as, at[i], pages*int(page)); !bytes.Equal(got, src.data) {
			t.Fatalf("space %d reads something else", i)
		}
	}
	if n := src.reads.Load(); n != pages {
		t.Errorf("%d reads of %d pages", n, pages)
	}
	if n := m.Stats().ObjectPages; n != pages {
		t.Errorf("%d pages of the object", n)
	}
	for i, as := range spaces {
		mustWrite(t, as, at[i]+addr.GVA(i)*page, []byte{'0' + byte(i)})
	}
	for i, as := range spaces {
		for k := range spaces {
			want := byte('f')
			if k == i {
				want = '0' + byte(i)
			}
			mustSee(t, as, at[i]+addr.GVA(k)*page, []byte{want})
		}
		mustDo(t, as.Discard(at[i], pages*page))
		mustSee(t, as, at[i]+addr.GVA(i)*page, []byte("file"))
	}
	mustCheck(t, m)
	o.Close() // mapped still
	mustSee(t, spaces[0], at[0]+5*page, []byte("file"))
	for i, as := range spaces {
		if objects(m) != 1 {
			t.Fatalf("%d objects before space %d is closed", objects(m), i)
		}
		if i%2 == 0 {
			mustDo(t, as.Unmap(at[i], pages*page))
		} else {
			mustDo(t, as.Close())
		}
		mustCheck(t, m)
	}
	if n := objects(m); n != 0 {
		t.Errorf("%d objects at the end", n)
	}
	if n := m.Stats().ObjectPages; n != 0 {
		t.Errorf("%d pages of objects at the end", n)
	}
}

// Parts of an area come and go; the object ends with the last page.
func TestObjectEndsWithItsLastPage(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	o := newFile(t, m, zeroReader{}, 8*int64(page))
	gva := mapFile(t, as, o, 8, rw)
	o.Close()
	mustMap(t, as, MapOptions{Addr: gva + 3*page, Length: 2 * page, Prot: rw, Flags: MapPrivate | MapFixed, Object: o, Offset: page})
	mustDo(t, as.Populate(ctx, addr.Range{Start: gva, End: gva + 8*page}, Read))
	for i := range addr.GVA(8) {
		if objects(m) != 1 {
			t.Fatalf("the object ended before page %d", i)
		}
		switch i % 3 {
		case 0:
			mustDo(t, as.Unmap(gva+i*page, page))
		case 1:
			mapAt(t, as, gva+i*page, page, rw)
		case 2:
			mustMap(t, as, MapOptions{Addr: gva + i*page, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
			mustDo(t, as.Unmap(gva+i*page, page))
		}
		mustCheck(t, m)
	}
	if n := objects(m); n != 0 {
		t.Errorf("%d objects left", n)
	}
}

// Many fill one page at a time: one frame stays, and all read it.
func TestObjectFillsRace(t *testing.T) {
	for round := range 50 {
		m := newMemory(t, 4<<20)
		const n = 6
		var meet sync.WaitGroup
		meet.Add(n)
		src := &countingReader{data: []byte("raced"), meet: &meet}
		o := newFile(t, m, src, 5)
		var wg sync.WaitGroup
		for range n {
			as := newSpace(t, m)
			gva := mapFile(t, as, o, 1, rw)
			wg.Add(1)
			go func() {
				defer wg.Done()
				var b [8]byte
				var err error
				if round%2 == 0 {
					_, err = as.ReadAt(ctx, b[:], gva)
				} else {
					err = as.Fault(ctx, gva, Write)
				}
				if err == nil {
					_, err = as.ReadAt(ctx, b[:], gva)
				}
				if err != nil || string(b[:]) != "raced\x00\x00\x00" {
					t.Errorf("%q, %v", b[:], err)
				}
			}()
		}
		wg.Wait()
		if s := m.Stats(); s.ObjectPages != 1 {
			t.Errorf("%d pages of the object", s.ObjectPages)
		}
		mustCheck(t, m)
		o.Close()
	}
}

func TestObjectEnd(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	for _, size := range []int64{0, 1, int64(page) - 1, int64(page), int64(page) + 1, 3*int64(page) - 7} {
		data := bytes.Repeat([]byte{0xee}, 4*int(page)) // the source has more
		o := newFile(t, m, bytes.NewReader(data), size)
		gva := mapFile(t, as, o, 4, rw)
		whole := (size + int64(page) - 1) / int64(page) * int64(page)
		want := append(bytes.Clone(data[:size]), make([]byte, whole-size)...)
		buf := make([]byte, 4*page)
		n, err := as.ReadAt(ctx, buf, gva)
		if n != int(whole) || !errors.Is(err, ErrBus) || !bytes.Equal(buf[:n], want) {
			t.Errorf("size %d: read %d, %v; want %d and ErrBus", size, n, err, whole)
		}
		n, err = as.WriteAt(ctx, buf, gva)
		if n != int(whole) || !errors.Is(err, ErrBus) {
			t.Errorf("size %d: write %d, %v", size, n, err)
		}
		if _, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + 4*page}, Read); !errors.Is(err, ErrBus) {
			t.Errorf("size %d: pin %v", size, err)
		}
		mustDo(t, as.Unmap(gva, 4*page))
		// From an offset past the end.
		gva = mustMap(t, as, MapOptions{Length: page, Prot: r_, Flags: MapPrivate, Object: o, Offset: 1 << 40})
		if err := as.Fault(ctx, gva, Read); !errors.Is(err, ErrBus) {
			t.Errorf("size %d: far past the end: %v", size, err)
		}
		mustDo(t, as.Unmap(gva, page))
		o.Close()
	}
	if _, err := m.NewFileObject(nil, 1, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("no source: %v", err)
	}
	if _, err := m.NewFileObject(zeroReader{}, -1, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("negative size: %v", err)
	}
	mustCheck(t, m)
}

// What cannot be read is an error that says why, never zeroes; and later it may
// be readable.
func TestObjectThatCannotBeRead(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	broken := errors.New("disk is on fire")
	var fail error
	o := newFile(t, m, readerFunc(func(p []byte, off int64) (int, error) {
		if fail != nil {
			return len(p) / 2, fail
		}
		return zeroReader{}.ReadAt(p, off)
	}), 2*int64(page))
	defer o.Close()
	gva := mapFile(t, as, o, 2, rw)
	for _, fail = range []error{broken, io.EOF, context.Canceled} {
		n, err := as.ReadAt(ctx, make([]byte, 10), gva)
		want := fail
		if fail == io.EOF {
			want = io.ErrUnexpectedEOF
		}
		if n != 0 || !errors.Is(err, want) || !errors.Is(err, ErrBus) {
			t.Errorf("source fails by %v: %d, %v", fail, n, err)
		}
		if n, err := as.WriteAt(ctx, make([]byte, 10), gva); n != 0 || !errors.Is(err, want) {
			t.Errorf("source fails by %v: write %d, %v", fail, n, err)
		}
	}
	fail = nil
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := as.ReadAt(canceled, make([]byte, 1), gva); !errors.Is(err, context.Canceled) || errors.Is(err, ErrBus) {
		t.Errorf("canceled: %v", err)
	}
	if s := m.Stats(); s.ObjectPages != 0 {
		t.Errorf("%d pages were filled without data", s.ObjectPages)
	}
	mustCheck(t, m)
	mustSee(t, as, gva, make([]byte, 2*page))
	if _, err := as.ReadAt(canceled, make([]byte, 1), gva); err != nil {
		t.Errorf("canceled, of a page that is there: %v", err)
	}
}

type readerFunc func([]byte, int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// Unmapped, and closed, while a page of it is being read.
func TestObjectGoesWhileItIsFilled(t *testing.T) {
	for _, closeSpace := range []bool{false, true} {
		m := newMemory(t, 4<<20)
		as, other := newSpace(t, m), newSpace(t, m)
		src := slowSource{make(chan struct{}), make(chan struct{})}
		o := newFile(t, m, src, 9)
		gva := mapFile(t, as, o, 1, rw)
		o.Close()
		fault := inBackground(func() {
			if err := as.Fault(ctx, gva, Read); !errors.Is(err, ErrNotMapped) {
				t.Errorf("fault in what was unmapped meanwhile: %v", err)
			}
		})
		<-src.asked
		mustDo(t, as.Unmap(gva, page))
		if closeSpace {
			mustDo(t, other.Close())
		}
		close(src.goOn)
		mustEnd(t, "fault", fault)
		if n := objects(m); n != 0 {
			t.Errorf("%d objects left", n)
		}
		mustCheck(t, m)
	}
}

// A terabyte of shared memory of which a few pages are touched costs little.
func TestObjectSparseTerabyte(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const tb = 1 << 40
	gva := mustMap(t, as, MapOptions{Length: tb, Prot: rw, Flags: MapShared | MapAnonymous})
	const touched = 64
	for i := range addr.GVA(touched) {
		mustWrite(t, as, gva+i*(tb/touched)+i*page, []byte{byte(i + 1)})
	}
	mustWrite(t, as, gva+tb-1, []byte("z"))
	child := mustFork(t, as)
	mustWrite(t, child, gva+tb/2, []byte("shared"))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 512<<10 {
		t.Errorf("%d bytes of heap for %d pages", grown, touched)
	}
	mustSee(t, as, gva+tb/2, []byte("shared"))
	mustSee(t, child, gva+tb-1, []byte("z"))
	for i := range addr.GVA(touched) {
		if i != touched/2 {
			mustSee(t, child, gva+i*(tb/touched)+i*page, []byte{byte(i + 1)})
		}
	}
	mustDo(t, as.Unmap(gva+page, tb-2*page))
	mustDo(t, child.Close())
	mustCheck(t, m)
	mustSee(t, as, gva, []byte{1})
	mustDo(t, as.Unmap(gva, tb))
	if s := m.Stats(); s.FramesInUse != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := as.Map(ctx, MapOptions{Length: uint64(DefaultHighest - DefaultLowest), Prot: rw, Flags: MapShared | MapAnonymous}); err != nil {
		t.Errorf("the whole space at once: %v", err)
	}
	mustWrite(t, as, DefaultHighest-1, []byte("z"))
}

// A memory is not closed under its objects, nor an object twice.
func TestObjectKeepsItsMemoryOpen(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 1 << 20})
	mustDo(t, err)
	as := newSpace(t, m)
	o := newFile(t, m, zeroReader{}, 10)
	mustRead(t, as, mapFile(t, as, o, 1, r_), 1)
	mustDo(t, as.Close())
	mustErrno(t, "close memory", m.Close(), 16)
	mustCheck(t, m)
	o.Close()
	defer func() { mustDo(t, m.Close()) }()
	func() {
		defer func() {
			if p := recover(); p == nil {
				t.Error("closing an object twice is not noticed")
			} else if s := fmt.Sprint(p); s != "guestmem: object file closed once too often" {
				t.Errorf("panic: %s", s)
			}
		}()
		o.Close()
	}()
}
