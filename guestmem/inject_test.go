package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// R13 under injected failure: a scenario runs again and again, each time with
// another allocation failing; what fails has changed nothing, or what it says.

var errInjected = errors.New("injected failure")

// failingStore fails Populate calls number from to until-1, while it is armed.
type failingStore struct {
	cow.FrameStore
	armed       atomic.Bool
	calls       atomic.Int64
	from, until int64
	failed      atomic.Int64
	giveBack    error // what GiveBack answers, if not nil
}

func (s *failingStore) Populate(f addr.PFN, n uint64) error {
	if s.armed.Load() {
		if k := s.calls.Add(1) - 1; k >= s.from && k < s.until {
			s.failed.Add(1)
			return errInjected
		}
	}
	return s.FrameStore.Populate(f, n)
}

func (s *failingStore) GiveBack(f addr.PFN, n uint64) error {
	if s.giveBack != nil {
		return s.giveBack
	}
	return s.FrameStore.GiveBack(f, n)
}

// failingReader fails one of its reads, by an error or by being short.
type failingReader struct {
	store   *failingStore // says whether it is armed
	data    []byte
	left    int // reads until the one that fails; < 0: none does
	short   bool
	wasRead bool // that one was reached
}

func (r *failingReader) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, r.data[min(off, int64(len(r.data))):])
	if !r.store.armed.Load() {
		return n, nil
	}
	if r.left--; r.left == -1 {
		r.wasRead = true
		if r.short {
			return n / 2, io.EOF
		}
		return n / 2, errInjected
	}
	return n, nil
}

// world is the scenario's state and its model: what the first byte of each
// mapped page reads as.
type world struct {
	t      *testing.T
	m      *Memory
	store  *failingStore
	src    *failingReader
	spaces []*AddressSpace
	model  []map[addr.GVA]byte
	object *Object
	pins   []*Pin
	tiny   bool // failures are expected and not tried again
	dead   bool // stop: what follows needs what failed
}

const (
	injPrivate addr.GVA = 0x40000000 - 3*page // six pages over the border of two leaf tables
	injShared  addr.GVA = 0x80000000
	injFile    addr.GVA = 0x80400000
	injFar     addr.GVA = 0x7000_0000_0000 // tables of its own
	injHeap    addr.GVA = 0x500000
)

// armed counts and fails allocations while fn runs.
func (w *world) armed(fn func() error) error {
	w.store.armed.Store(true)
	defer w.store.armed.Store(false)
	return fn()
}

// step runs one operation; apply says what it does to the model once it has
// succeeded. If it fails, everything must be as before, and it must succeed
// when the host has memory again.
func (w *world) step(name string, op func() error, apply func()) {
	w.t.Helper()
	if w.dead {
		return
	}
	before := w.areas()
	err := w.armed(op)
	if err != nil {
		if !errors.Is(err, ErrNoMemory) && !errors.Is(err, errInjected) && !errors.Is(err, io.ErrUnexpectedEOF) {
			w.t.Errorf("%s: %v, want ErrNoMemory or what was injected", name, err)
		}
		if w.store.failed.Load() == 0 && !w.src.wasRead && !w.tiny {
			w.t.Errorf("%s failed though nothing was injected: %v", name, err)
		}
		if after := w.areas(); after != before {
			w.t.Errorf("%s failed (%v) and changed the areas:\n%s\nwere\n%s", name, err, after, before)
		}
		w.verify(name + ", which failed")
		if w.tiny {
			w.dead = true
			return
		}
		if err := op(); err != nil {
			w.t.Errorf("%s, again with memory: %v", name, err)
			w.dead = true
			return
		}
	}
	if apply != nil {
		apply()
	}
	w.verify(name)
}

func (w *world) areas() string {
	var b bytes.Buffer
	for i, as := range w.spaces {
		if as != nil {
			fmt.Fprintf(&b, "space %d:\n%s", i, as)
		}
	}
	return b.String()
}

// verify compares the content that is resident with the model, and every count.
func (w *world) verify(after string) {
	w.t.Helper()
	for i, as := range w.spaces {
		if as == nil {
			continue
		}
		if n := as.Stats().MappedBytes / page; n != uint64(len(w.model[i])) && !w.t.Failed() {
			w.t.Errorf("after %s: space %d has %d pages mapped, want %d:\n%s", after, i, n, len(w.model[i]), as)
		}
		for gva, want := range w.model[i] {
			inFile := gva >= injFile && gva < injFile+4*page && want == 10+byte((gva-injFile)/page)
			if (want == 0 || inFile) && as.leafEntry(gva) == 0 {
				continue // stays untouched
			}
			var b [1]byte
			_, err := as.ReadAt(ctx, b[:], gva)
			switch {
			case err != nil && w.tiny && errors.Is(err, ErrNoMemory):
			case err != nil:
				w.t.Errorf("after %s: space %d at %v: %v", after, i, gva, err)
			case b[0] != want:
				w.t.Errorf("after %s: space %d at %v reads %d, want %d", after, i, gva, b[0], want)
			}
		}
	}
	if err := w.m.Check(); err != nil {
		w.t.Errorf("after %s: %v", after, err)
	}
	if w.t.Failed() {
		w.dead = true
	}
}

// write writes whole pages of v, and what it reports as done is in the model.
func (w *world) write(space int, gva addr.GVA, n int, v byte, shared bool) {
	w.t.Helper()
	if w.dead {
		return
	}
	done := 0
	data := bytes.Repeat([]byte{v}, n*int(page))
	w.step(fmt.Sprintf("write %d to space %d at %v", v, space, gva), func() error {
		k, err := w.spaces[space].WriteAt(ctx, data[done:], gva+addr.GVA(done))
		for range (done+k+int(page)-1)/int(page) - done/int(page) {
			at := gva + addr.GVA(done).RoundDown()
			for i := range w.model {
				if i == space || shared {
					w.model[i][at] = v
				}
			}
			done += int(page)
		}
		return err
	}, nil)
}

func (w *world) addSpace(as *AddressSpace, from int) {
	w.spaces = append(w.spaces, as)
	m := make(map[addr.GVA]byte)
	if from >= 0 {
		for gva, v := range w.model[from] {
			m[gva] = v
		}
	}
	w.model = append(w.model, m)
}

func (w *world) mapPages(space int, gva addr.GVA, n int, o MapOptions, first byte) {
	o.Addr, o.Length, o.Flags = gva, uint64(n)*page, o.Flags|MapFixed
	w.step(fmt.Sprintf("map %d pages at %v", n, gva), func() error {
		_, err := w.spaces[space].Map(ctx, o)
		return err
	}, func() {
		for i := range n {
			v := first
			if o.Object != nil {
				v = first + byte(i)
			}
			w.model[space][gva+addr.GVA(i)*page] = v
		}
	})
}

func (w *world) fork(space int) {
	var child *AddressSpace
	w.step(fmt.Sprintf("fork space %d", space), func() (err error) {
		child, err = w.spaces[space].Fork()
		return err
	}, func() { w.addSpace(child, space) })
}

func (w *world) closeSpace(i int) {
	if i < len(w.spaces) && w.spaces[i] != nil {
		if err := w.spaces[i].Close(); err != nil {
			w.t.Error(err)
		}
		w.spaces[i] = nil
		w.model[i] = nil
	}
}

// run is the scenario: every operation that allocates, on tables that are own,
// shared by two and shared by three.
func (w *world) run() {
	m := w.m
	w.step("new address space", func() error {
		as, err := m.NewAddressSpace(SpaceOptions{})
		if err == nil {
			as.SetBreak(injHeap)
			w.addSpace(as, -1)
		}
		return err
	}, nil)
	if w.dead {
		return
	}
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon}, 0)
	w.write(0, injPrivate, 5, 1, false)
	w.mapPages(0, injShared, 2, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous}, 0)
	w.write(0, injShared, 1, 2, true)
	w.mapPages(0, injFile, 4, MapOptions{Prot: rw, Flags: MapPrivate, Object: w.object}, 10)
	w.step("populate the file", func() error {
		return w.spaces[0].Populate(ctx, addr.Range{Start: injFile, End: injFile + 2*page}, Read)
	}, nil)
	w.write(0, injFile+page, 1, 3, false)
	w.write(0, injFile+2*page, 1, 4, false) // a copy of a page that nobody has read
	w.fork(0)
	w.write(1, injPrivate, 1, 5, false)
	w.write(0, injPrivate+page, 1, 6, false)
	w.write(1, injPrivate+4*page, 2, 7, false)
	w.write(1, injShared, 2, 8, true)
	w.write(1, injFile+page, 1, 9, false)
	for i, access := range []Access{Write, Read} {
		gva := injPrivate + addr.GVA(2+i)*page
		w.step(fmt.Sprintf("pin %v", gva), func() error {
			p, err := w.spaces[0].Pin(ctx, addr.Range{Start: gva, End: gva + 1}, access)
			if err == nil {
				w.pins = append(w.pins, p)
			}
			return err
		}, nil)
	}
	w.fork(0) // copies two pinned pages
	w.step("protect over two shared leaf tables", func() error {
		return w.spaces[2].Protect(injPrivate+page, 4*page, ProtRead)
	}, nil)
	w.step("protect it again", func() error {
		return w.spaces[2].Protect(injPrivate+page, 4*page, ProtRead|ProtWrite)
	}, nil)
	w.write(2, injPrivate+page, 4, 11, false)
	w.fork(2)
	w.step("unmap across the border", func() error {
		return w.spaces[3].Unmap(injPrivate+2*page, 2*page)
	}, func() {
		delete(w.model[3], injPrivate+2*page)
		delete(w.model[3], injPrivate+3*page)
	})
	w.step("discard across the border", func() error {
		return w.spaces[1].Discard(injPrivate+2*page, 2*page)
	}, func() {
		w.model[1][injPrivate+2*page] = 0
		w.model[1][injPrivate+3*page] = 0
	})
	w.fork(2)
	w.mapPages(4, injPrivate+page, 2, MapOptions{Prot: rw, Flags: anon}, 0)
	w.mapPages(2, injPrivate+4*page, 1, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous}, 0)
	w.mapPages(2, injFar, 1, MapOptions{Prot: rw, Flags: anon | MapPopulate}, 0)
	w.write(2, injFar, 1, 12, false)
	w.step("heap", func() error { _, err := w.spaces[2].Brk(injHeap + 3*page); return err }, func() {
		for i := range addr.GVA(3) {
			w.model[2][injHeap+i*page] = 0
		}
	})
	w.write(2, injHeap, 3, 13, false)
	w.fork(2)
	w.step("heap shrinks", func() error { _, err := w.spaces[2].Brk(injHeap + page); return err }, func() {
		delete(w.model[2], injHeap+page)
		delete(w.model[2], injHeap+2*page)
	})
	w.step("compare and swap", func() error {
		ok, err := w.spaces[5].CompareAndSwap32(ctx, injHeap, 0x0d0d0d0d, 14)
		if err == nil && !ok {
			return errors.New("not swapped")
		}
		return err
	}, func() { w.model[5][injHeap] = 14 })
	w.closeSpace(1)
	w.verify("a child's close")
	w.write(0, injPrivate, 5, 15, false)
	w.closeSpace(2)
	w.write(5, injPrivate, 4, 16, false)
	for _, p := range w.pins {
		p.Release()
	}
	w.pins = nil
	w.verify("letting the pins go")
	w.step("unmap all", func() error { return w.spaces[5].Unmap(0, uint64(DefaultHighest)) }, func() { clear(w.model[5]) })
}

// end closes everything and looks for leaks.
func (w *world) end() {
	for _, p := range w.pins {
		p.Release()
	}
	for i := range w.spaces {
		w.closeSpace(i)
	}
	if w.object != nil {
		w.object.Close()
	}
	if v := w.m.view; v != nil {
		v.Flush()
	}
	if err := w.m.Check(); err != nil {
		w.t.Errorf("at the end: %v", err)
	}
	if s := w.m.Stats(); s.FramesInUse != 0 || s.Tables != 0 || s.ObjectPages != 0 || s.Quarantined != 0 {
		w.t.Errorf("left in use at the end: %+v", s)
	}
	mustDo(w.t, w.m.Close())
}

// newWorld returns one whose memory asks the host for one frame at a time and
// keeps none that is free, so that every allocation can fail.
func newWorld(t *testing.T, frames uint64, from, until int64, left int) *world {
	w := &world{t: t, src: &failingReader{left: left, short: left%2 == 0}}
	for i := range 4 {
		w.src.data = append(w.src.data, bytes.Repeat([]byte{byte(10 + i)}, int(page))...)
	}
	storeHook = func(s cow.FrameStore) cow.FrameStore {
		w.store = &failingStore{FrameStore: s, from: from, until: until}
		return w.store
	}
	defer func() { storeHook = nil }()
	var err error
	w.m, err = NewMemory(MemoryOptions{Size: frames * page, Grow: page, KeepFree: 1})
	mustDo(t, err)
	w.src.store = w.store
	w.object, err = w.m.NewFileObject(w.src, 4*int64(page), "file")
	mustDo(t, err)
	return w
}

// runFailing runs the scenario with Populate calls failing from each n on, span
// of them, until a run passes that reaches none.
func runFailing(t *testing.T, span int64) {
	for n := int64(0); ; n++ {
		w := newWorld(t, 1024, n, n+span, -1)
		w.run()
		w.end()
		if t.Failed() {
			t.Fatalf("with Populate call %d failing", n)
		}
		if w.store.failed.Load() == 0 {
			if n < 40 {
				t.Errorf("only %d allocations could fail", n)
			}
			return
		}
	}
}

func TestR13EveryAllocationFailsOnce(t *testing.T) { runFailing(t, 1) }

// Asking again after reclaiming fails as well.
func TestR13EveryAllocationFailsTwice(t *testing.T) { runFailing(t, 2) }

// From some allocation on there is no memory until the operation has failed.
func TestR13EveryAllocationFailsForLong(t *testing.T) { runFailing(t, 7) }

func TestR13EveryReadOfAnObjectFails(t *testing.T) {
	for left := 0; ; left++ {
		w := newWorld(t, 1024, 0, 0, left)
		w.run()
		w.end()
		if t.Failed() {
			t.Fatalf("with read %d failing", left)
		}
		if !w.src.wasRead {
			if left < 3 {
				t.Errorf("only %d reads", left)
			}
			return
		}
	}
}

// A host that takes nothing back only keeps free frames backed.
func TestR13GivingBackFails(t *testing.T) {
	w := newWorld(t, 1024, 0, 0, -1)
	w.store.giveBack = errInjected
	w.run()
	w.end()
}

// A memory too small for the scenario: what does not fit is ErrNoMemory.
func TestR13TinyMemories(t *testing.T) {
	done := 0
	for frames := uint64(1); frames <= 80; frames++ {
		w := newWorld(t, frames, 0, 0, -1)
		w.tiny = true
		w.run()
		if !w.dead {
			done++
		}
		w.end()
		if t.Failed() {
			t.Fatalf("with %d frames", frames)
		}
	}
	if done == 0 {
		t.Error("the scenario fitted nowhere")
	}
}

// Protect takes permissions away a leaf table at a time. When a later table
// cannot be copied, what it had replaced before that is given back, and views
// are told of what it has taken: the next Protect will not find it again.
func TestR13ProtectFailsInTheMiddle(t *testing.T) {
	for n := range int64(12) {
		w := newWorld(t, 1024, n, n+10, -1)
		v := attachRecorder(t, w.m)
		as := newSpace(t, w.m)
		w.addSpace(as, -1)
		const tables = 4
		mapAt(t, as, 0x40000000, tables<<21, rw)
		for i := range addr.GVA(tables) {
			mustWrite(t, as, 0x40000000+i<<21, []byte("page"))
		}
		child := mustFork(t, as)
		w.addSpace(child, -1)
		mustWrite(t, as, 0x40000000, []byte("own"))
		mustWrite(t, as, 0x40000000+1<<21, []byte("own"))
		before := as.String()
		v.settle(t)
		err := w.armed(func() error { return as.Protect(0x40000000, tables<<21, r_) })
		v.settle(t)
		if err != nil {
			mustErrno(t, "protect", err, 12)
			if after := as.String(); after != before {
				t.Errorf("areas after:\n%s", after)
			}
		}
		mustCheck(t, w.m)
		for i := range addr.GVA(tables) {
			if err == nil {
				break
			}
			mustWrite(t, as, 0x40000000+i<<21, []byte("page"))
		}
		w.end()
		if t.Failed() {
			t.Fatalf("from Populate call %d on", n)
		}
	}
}
