package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// slowFile is a memFile whose calls wait, and fail, when they are told to.
type slowFile struct {
	memFile
	gate   sync.RWMutex // held by who wants calls to wait
	failed error        // gate
	writes [][2]int64   // offset and length of each; memFile.mu
	came   chan struct{}
}

func (f *slowFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.pass(); err != nil {
		return 0, err
	}
	return f.memFile.ReadAt(p, off)
}

func (f *slowFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.pass(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	f.writes = append(f.writes, [2]int64{off, int64(len(p))})
	f.mu.Unlock()
	return f.memFile.WriteAt(p, off)
}

func (f *slowFile) pass() error {
	select {
	case f.came <- struct{}{}:
	default:
	}
	f.gate.RLock()
	defer f.gate.RUnlock()
	return f.failed
}

func (f *slowFile) fail(err error) {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.failed = err
}

func (f *slowFile) took() [][2]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.writes
	f.writes = nil
	return out
}

func newSlowFile(pages int) *slowFile {
	f := &slowFile{came: make(chan struct{}, 1)}
	for i := range pages {
		f.data = append(f.data, bytes.Repeat([]byte{'a' + byte(i)}, int(page))...)
	}
	return f
}

// newWritable returns an object over a file that can be written.
func newWritable(tb testing.TB, m *Memory, f *slowFile) *Object {
	tb.Helper()
	o, err := m.NewObject(ObjectOptions{Source: f, Sink: f, Size: int64(len(f.data)), Name: "file"})
	mustDo(tb, err)
	tb.Cleanup(o.Close)
	return o
}

// newSharedFile returns a new memory, and in it an object over a file of so many pages
// and an address space that maps all of it shared, from at on.
func newSharedFile(tb testing.TB, pages int) (m *Memory, f *slowFile, o *Object, as *AddressSpace, at addr.GVA) {
	tb.Helper()
	m, f = newMemory(tb, 16<<20), newSlowFile(pages)
	o, as = newWritable(tb, m, f), newSpace(tb, m)
	return m, f, o, as, mapShared(tb, as, o, pages)
}

// mustSync writes back all of an object.
func mustSync(tb testing.TB, o *Object) {
	tb.Helper()
	mustDo(tb, o.Sync(ctx, 0, ^uint64(0)))
}

func mapShared(tb testing.TB, as *AddressSpace, o *Object, pages int) addr.GVA {
	tb.Helper()
	return mustMap(tb, as, MapOptions{Length: uint64(pages) * page, Prot: rw, Flags: MapShared, Object: o})
}

// Whoever maps an object sees what the others, and write calls, store to it, at once;
// private copies stay what they are.
func TestObjectIsOneMemory(t *testing.T) {
	m := newMemory(t, 16<<20)
	o := newWritable(t, m, newSlowFile(4))
	a, b := newSpace(t, m), newSpace(t, m)
	atA, atB := mapShared(t, a, o, 4), mapShared(t, b, o, 4)
	private := mapFile(t, b, o, 4, rw)
	mustWrite(t, b, private+page, []byte("mine"))
	child := mustFork(t, a)
	for i, write := range []func(p []byte){
		func(p []byte) { mustWrite(t, a, atA+page, p) },
		func(p []byte) { mustWrite(t, b, atB+page, p) },
		func(p []byte) { mustWrite(t, child, atA+page, p) },
		func(p []byte) {
			if n, err := o.WriteAt(ctx, p, int64(page)); err != nil || n != len(p) {
				t.Fatal(n, err)
			}
		},
	} {
		p := fmt.Appendf(nil, "write %d", i)
		write(p)
		mustSee(t, a, atA+page, p)
		mustSee(t, b, atB+page, p)
		mustSee(t, child, atA+page, p)
		got := make([]byte, len(p))
		if n, err := o.ReadAt(ctx, got, int64(page)); err != nil || n != len(p) || !bytes.Equal(got, p) {
			t.Fatalf("ReadAt: %d, %v, %q", n, err, got)
		}
		mustSee(t, b, private+page, []byte("mine"))
	}
}

// An object that may only be read may not be written by shared areas, whatever is
// asked for; private ones may.
func TestObjectReadOnly(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	writable := newWritable(t, m, newSlowFile(2))
	readOnly := newFile(t, m, bytes.NewReader(make([]byte, page)), int64(page))
	defer readOnly.Close()
	for _, o := range []MapOptions{
		{Object: readOnly}, {Object: writable, Access: ObjectReadOnly},
	} {
		o.Length, o.Flags, o.Prot = 2*page, MapShared, rw
		if _, err := as.Map(ctx, o); !errors.Is(err, syscall.EACCES) {
			t.Errorf("writable: %v", err)
		}
		o.Prot = r_
		at := mustMap(t, as, o)
		if err := as.Protect(at, page, rw); !errors.Is(err, ErrDenied) {
			t.Errorf("Protect: %v", err)
		}
		if err := as.Advise(ctx, at, page, AdviceRemove); !errors.Is(err, syscall.EACCES) {
			t.Errorf("AdviceRemove: %v", err)
		}
		if info, _ := as.FindArea(at); !info.Shared {
			t.Errorf("not shown as shared: %+v", info)
		}
		o.Prot, o.Flags = rw, MapPrivate
		mustWrite(t, as, mustMap(t, as, o), []byte("copy"))
	}
	if _, err := readOnly.WriteAt(ctx, []byte("x"), 0); !errors.Is(err, ErrDenied) {
		t.Errorf("WriteAt: %v", err)
	}
	if err := readOnly.Truncate(0); !errors.Is(err, ErrDenied) {
		t.Errorf("Truncate: %v", err)
	}
}

// Sync writes what has changed since the last one, and that only; what cannot be
// written counts as changed.
func TestSyncWritesWhatHasChanged(t *testing.T) {
	_, f, _, as, at := newSharedFile(t, 8)
	mustRead(t, as, at, 8*int(page))
	sync := func() error { return as.Sync(at, 8*page, SyncWait) }
	expect := func(what string, want ...[2]int64) {
		t.Helper()
		mustDo(t, sync())
		if got := f.took(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: wrote %v, want %v", what, got, want)
		}
	}
	expect("nothing changed")
	mustWrite(t, as, at+2*page, []byte("two"))
	mustWrite(t, as, at+3*page, []byte("three"))
	expect("two pages", [2]int64{2 * int64(page), 2 * int64(page)})
	expect("nothing since")
	mustWrite(t, as, at+2*page, []byte("again"))
	expect("the same page again", [2]int64{2 * int64(page), int64(page)})
	if got := f.bytes()[2*page:][:5]; string(got) != "again" {
		t.Errorf("the sink has %q", got)
	}
	// A permission that comes back by Protect does not get round it, nor a fork.
	mustDo(t, as.Protect(at, 8*page, r_))
	mustDo(t, as.Protect(at, 8*page, rw))
	mustWrite(t, as, at+2*page, []byte("second"))
	expect("after protect", [2]int64{2 * int64(page), int64(page)})
	child := mustFork(t, as)
	mustDo(t, as.Protect(at, 8*page, r_))
	mustDo(t, as.Protect(at, 8*page, rw))
	mustWrite(t, as, at+2*page, []byte("third"))
	mustWrite(t, child, at+5*page, []byte("child"))
	expect("after protect and fork", [2]int64{2 * int64(page), int64(page)}, [2]int64{5 * int64(page), int64(page)})

	mustWrite(t, as, at, []byte("lost?"))
	f.fail(syscall.ENOSPC)
	if err := sync(); !errors.Is(err, syscall.EIO) || !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, ErrIO) {
		t.Errorf("with a full sink: %v", err)
	}
	f.fail(nil)
	f.took()
	expect("what had failed", [2]int64{0, int64(page)})
	// A device's stores do not fault.
	pin := mustPin(t, as, at, 1, Write)
	expect("pinned", [2]int64{0, int64(page)})
	expect("pinned still", [2]int64{0, int64(page)})
	pin.Release()
}

// A sink that does not answer holds up who waits for it, and no store, fault nor
// change.
func TestR4SlowSinkHoldsUpNobody(t *testing.T) {
	_, f, o, as, at := newSharedFile(t, 4)
	mustWrite(t, as, at, []byte("first"))
	<-f.came
	f.gate.Lock()
	synced := testutil.Go(func() { mustDo(t, as.Sync(at, page, SyncWait)) })
	testutil.Proceeds(t, f.came, "the write")
	mustWrite(t, as, at, []byte("other"))
	mustFork(t, as)
	mustDo(t, as.Protect(at, page, r_))
	mustDo(t, as.Protect(at, page, rw))
	mustDo(t, as.Unmap(at+3*page, page))
	testutil.Parked(t, synced, "Sync")
	f.gate.Unlock()
	testutil.Proceeds(t, synced, "Sync")
	if got := f.bytes()[:5]; string(got) != "first" {
		t.Errorf("the sink has %q", got)
	}
	mustSync(t, o)
	if got := f.bytes()[:5]; string(got) != "other" {
		t.Errorf("the sink has %q", got)
	}
}

// A source that does not answer holds up the faults that need it, and nobody else;
// one that fails fails them by name, and never gives zeroes.
func TestR12SlowOrFailingSource(t *testing.T) {
	_, f, o, as, at := newSharedFile(t, 4)
	mustSee(t, as, at+page, []byte("b"))
	<-f.came
	f.gate.Lock()
	read := testutil.Go(func() { mustSee(t, as, at, []byte("a")) })
	testutil.Proceeds(t, f.came, "the read")
	mustWrite(t, as, at+page, []byte("B"))
	mustRead(t, mustFork(t, as), at+page, 1)
	mustDo(t, as.Unmap(at+3*page, page))
	if _, err := o.ReadAt(ctx, make([]byte, 1), int64(page)); err != nil {
		t.Error(err)
	}
	testutil.Parked(t, read, "the fault")
	f.gate.Unlock()
	testutil.Proceeds(t, read, "the fault")
	f.fail(errors.New("broken"))
	err := as.Fault(ctx, at+2*page, Read)
	if !errors.Is(err, ErrBus) || !errors.Is(err, ErrIO) {
		t.Errorf("fault of what cannot be read: %v", err)
	}
	if _, err := o.WriteAt(ctx, []byte("x"), 2*int64(page)+1); !errors.Is(err, syscall.EIO) {
		t.Errorf("write to what cannot be read: %v", err)
	}
	f.fail(nil)
	mustSee(t, as, at+2*page, []byte("cc"))
}

// What lies beyond the new end is gone for all, private copies too, and is empty when
// the object grows again.
func TestTruncate(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(6)
	o := newWritable(t, m, f)
	as := newSpace(t, m)
	at, private := mapShared(t, as, o, 6), mapFile(t, as, o, 6, rw)
	mustWrite(t, as, private+2*page, []byte("copy"))
	mustWrite(t, as, private+3*page, []byte("copy"))
	mustRead(t, as, at, 6*int(page))
	child := mustFork(t, as)
	mustDo(t, o.Truncate(2*int64(page)+100))
	for _, s := range []*AddressSpace{as, child} {
		for i := range addr.GVA(6) {
			want := error(nil)
			if i > 2 {
				want = ErrBus
			}
			for _, base := range []addr.GVA{at, private} {
				if err := s.Fault(ctx, base+i*page, Read); !errors.Is(err, want) {
					t.Errorf("page %d: %v, want %v", i, err, want)
				}
			}
		}
		mustSee(t, s, at+2*page, append(bytes.Repeat([]byte("c"), 100), make([]byte, page-100)...))
		mustSee(t, s, private+2*page, []byte("copyccc"))
		mustSee(t, s, private+3*page-1, []byte("b")[:0])
	}
	if got := len(f.bytes()); got != 2*int(page)+100 {
		t.Errorf("the sink has %d bytes", got)
	}
	mustDo(t, o.Truncate(5*int64(page)))
	mustSee(t, as, private+3*page, make([]byte, 2*page))
	mustSee(t, child, at+3*page, make([]byte, 2*page))
	if _, err := o.ReadAt(ctx, make([]byte, 2), 5*int64(page)-1); !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt past the end: %v", err)
	}
	if err := o.Truncate(-1); !errors.Is(err, ErrInvalid) {
		t.Errorf("Truncate(-1): %v", err)
	}
	f.fail(nil)
}

// A page that a fault is reading when the object is cut short does not come back
// with what it had.
//
//	fault                        truncate
//	asks the source
//	                             ends at page 0, takes pages out
//	                             ends at page 4 again
//	has read what was there
//	must not install it
func TestR13TruncateBesideAFill(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(4)
	old := bytes.Clone(f.data)
	src := &heldReader{data: old, came: make(chan struct{}), on: make(chan struct{})}
	o, err := m.NewObject(ObjectOptions{Source: src, Sink: f, Size: 4 * int64(page), Name: "file"})
	mustDo(t, err)
	defer o.Close()
	as := newSpace(t, m)
	at := mapShared(t, as, o, 4)
	var got []byte
	read := testutil.Go(func() { got = mustRead(t, as, at+2*page, 8) })
	testutil.Proceeds(t, src.came, "the fill")
	mustDo(t, o.Truncate(0))
	mustDo(t, o.Truncate(4*int64(page)))
	close(src.on)
	testutil.Proceeds(t, read, "the fault")
	if !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("the page has %q, from before it was cut off", got)
	}
}

// heldReader tells of its first read and lets it go on later.
type heldReader struct {
	data     []byte
	came, on chan struct{}
	once     sync.Once
}

func (r *heldReader) ReadAt(p []byte, off int64) (int, error) {
	r.once.Do(func() { close(r.came) })
	<-r.on
	return bytes.NewReader(r.data).ReadAt(p, off)
}

// Interleaving 11: pages are gone from the object before the first space is changed;
// otherwise a space that was swept would get them back from it while the others
// are.
//
//	truncate            space A                space B
//	sweeps A
//	                    must not find page 1
//	sweeps B
//	drops the page
func TestR1TruncateHidesPagesFirst(t *testing.T) {
	m := newMemory(t, 16<<20)
	o := newWritable(t, m, newSlowFile(2))
	var spaces []*AddressSpace
	var at []addr.GVA
	for range 3 {
		as := newSpace(t, m)
		spaces, at = append(spaces, as), append(at, mapShared(t, as, o, 2))
		mustWrite(t, as, at[len(at)-1]+page, []byte("old"))
	}
	asked := 0
	punchHook = func(*AddressSpace) {
		asked++
		for i, as := range spaces[:min(asked-1, 3)] { // swept by now
			if err := as.Fault(ctx, at[i]+page, Write); !errors.Is(err, ErrBus) {
				t.Errorf("a space that was swept finds the page again: %v", err)
			}
		}
	}
	defer func() { punchHook = nil }()
	mustDo(t, o.Truncate(int64(page)))
	if asked < 3 {
		t.Fatalf("%d spaces swept", asked)
	}
	for i, as := range spaces {
		if err := as.Fault(ctx, at[i]+page, Read); !errors.Is(err, ErrBus) {
			t.Errorf("space %d: %v", i, err)
		}
	}
}

// Whoever stores to a page while it is being written back has it written back again.
//
//	store                        sync
//	                             takes the mark off
//	                             takes the permission from A
//	stores to A: marks the page
//	                             copies, writes: with or without the store
//	                             the next sync writes it in any case
func TestR1StoreBesideSyncIsKept(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(1)
	o := newWritable(t, m, f)
	a, b := newSpace(t, m), newSpace(t, m)
	atA, atB := mapShared(t, a, o, 1), mapShared(t, b, o, 1)
	mustWrite(t, a, atA, []byte("1"))
	mustWrite(t, b, atB, []byte("1"))
	n := 0
	punchHook = func(*AddressSpace) {
		n++
		mustWrite(t, a, atA, fmt.Appendf(nil, "%d", n+1))
		mustWrite(t, b, atB, fmt.Appendf(nil, "%d", n+2))
	}
	mustDo(t, o.Sync(ctx, 0, page))
	punchHook = nil
	mustDo(t, o.Sync(ctx, 0, page))
	if got, want := f.bytes()[0], mustRead(t, a, atA, 1)[0]; got != want {
		t.Errorf("the sink has %q, memory %q", got, want)
	}
	if n < 2 {
		t.Fatalf("%d spaces swept", n)
	}
}

// The object is written back when the last area goes, if nobody did before; and then
// it lets go of its source.
func TestObjectEndsWrittenBack(t *testing.T) {
	m := newMemory(t, 16<<20)
	for _, broken := range []error{nil, syscall.ENOSPC} {
		f := newSlowFile(1)
		var lost error
		released := 0
		o, err := m.NewObject(ObjectOptions{Source: f, Sink: f, Size: int64(page), Name: "file",
			Lost: func(err error) { lost = err }, Released: func() { released++ }})
		mustDo(t, err)
		as := newSpace(t, m)
		at := mapShared(t, as, o, 1)
		o.Close()
		mustWrite(t, as, at, []byte("kept"))
		f.fail(broken)
		if released != 0 {
			t.Error("released while it is mapped")
		}
		mustDo(t, as.Unmap(at, page))
		if released != 1 {
			t.Errorf("released %d times", released)
		}
		switch {
		case broken == nil && (lost != nil || string(f.bytes()[:4]) != "kept"):
			t.Errorf("lost: %v; the sink has %q", lost, f.bytes()[:4])
		case broken != nil && !errors.Is(lost, broken):
			t.Errorf("lost: %v", lost)
		}
	}
}

// AdviceRemove makes a hole in the file, for all who map it, and leaves private
// copies alone.
func TestRemoveFromFile(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(3)
	o := newWritable(t, m, f)
	as := newSpace(t, m)
	at, private := mapShared(t, as, o, 3), mapFile(t, as, o, 3, rw)
	mustWrite(t, as, private+page, []byte("copy"))
	mustRead(t, as, private, 3*int(page))
	mustRead(t, as, at, 3*int(page))
	mustDo(t, as.Advise(ctx, at+page, 2*page, AdviceRemove))
	mustSee(t, as, at, []byte("a"))
	mustSee(t, as, at+page, make([]byte, 2*page))
	mustSee(t, as, private+page, []byte("copyb"))
	mustSee(t, as, private+2*page, make([]byte, page))
	if got := f.bytes()[page:]; !bytes.Equal(got, make([]byte, 2*page)) {
		t.Errorf("the sink has %q", got[:8])
	}
}
