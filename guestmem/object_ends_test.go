package guestmem

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// untoldSink is a sink that has no Truncate. Before, if it is not nil, is called once,
// before a write.
type untoldSink struct {
	f      *slowFile
	before func()
}

func (s *untoldSink) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

func (s *untoldSink) WriteAt(p []byte, off int64) (int, error) {
	if fn := s.before; fn != nil {
		s.before = nil
		fn()
	}
	return s.f.WriteAt(p, off)
}

func newObject(tb testing.TB, m *Memory, src io.ReaderAt, dst io.WriterAt, size int64) *Object {
	tb.Helper()
	o, err := m.NewObject(ObjectOptions{Source: src, Sink: dst, Size: size, Name: "file"})
	mustDo(tb, err)
	tb.Cleanup(o.Close)
	return o
}

// mustBeInSink syncs an object, and compares what the sink has with what it holds.
func mustBeInSink(tb testing.TB, o *Object, f *slowFile) {
	tb.Helper()
	mustSync(tb, o)
	want := make([]byte, o.Size())
	if n, err := o.ReadAt(ctx, want, 0); n != len(want) {
		tb.Fatal(n, err)
	}
	got := f.bytes()
	for i := range want {
		if i < len(got) && got[i] != want[i] || i >= len(got) && want[i] != 0 {
			tb.Fatalf("byte %#x of the sink is not %#x (%#x bytes, of %#x)", i, want[i], len(got), len(want))
		}
	}
}

// A sink that cannot be cut short has zeroes where the object has grown over what it
// was cut back from; and no zeroes over what it was given since.
func TestSyncToASinkWithoutTruncate(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(6)
	sink := &untoldSink{f: f}
	o := newObject(t, m, f, sink, 6*int64(page))
	as := newSpace(t, m)
	at := mapShared(t, as, o, 12)
	mustDo(t, o.Truncate(100))
	mustDo(t, o.Truncate(2*int64(page)))
	mustBeInSink(t, o, f) // part of it, of pages that nobody has touched
	mustWrite(t, as, at+page, []byte("kept"))
	mustBeInSink(t, o, f)
	mustDo(t, o.Truncate(3*int64(page)))
	mustWrite(t, as, at+2*page, []byte("kept too"))
	f.fail(errors.New("broken"))
	if err := o.Sync(ctx, 0, ^uint64(0)); err == nil {
		t.Error("Sync to a broken sink")
	}
	f.fail(nil)
	mustBeInSink(t, o, f)
	// It grows while the zeroes are being written, and what it grew by is written back
	// in one go with them: the zeroes that are to come are not written over that.
	mustDo(t, o.Truncate(3*int64(page)+5))
	mustDo(t, o.Truncate(4*int64(page)))
	sink.before = func() {
		if _, err := o.WriteAt(ctx, []byte("grown"), 4*int64(page)+7); err != nil {
			t.Error(err)
		}
	}
	mustSync(t, o)
	if sink.before != nil {
		t.Fatal("nothing was written")
	}
	mustBeInSink(t, o, f)
	mustWrite(t, as, at+4*page, []byte("and kept"))
	mustDo(t, o.Truncate(8*int64(page)))
	mustBeInSink(t, o, f)
	mustSee(t, as, at+page, []byte("kept"))
	mustSee(t, as, at+2*page, []byte("kept too"))
	mustSee(t, as, at+5*page, make([]byte, page))
	if o.stale <= o.reached {
		t.Errorf("stale from %#x on, of %#x", o.stale, o.reached)
	}
}

// Where the source is another file than the sink, what is taken out does not come back
// from it.
func TestRemoveWhereTheSourceIsAnotherFile(t *testing.T) {
	m := newMemory(t, 16<<20)
	base, f := newSlowFile(8), newSlowFile(8)
	o := newObject(t, m, base, f, 8*int64(page))
	as := newSpace(t, m)
	at := mapShared(t, as, o, 8)
	mustSee(t, as, at+page, []byte("b"))
	mustDo(t, as.Advise(ctx, at+page, 2*page, AdviceRemove)) // one was there, one was not
	mustDo(t, as.Advise(ctx, at+6*page, page, AdviceRemove))
	mustBeInSink(t, o, f)
	mustSee(t, as, at+page, make([]byte, 2*page))
	mustSee(t, as, at+3*page, []byte("d"))
	mustSee(t, as, at+6*page, make([]byte, page))
	mustSee(t, as, at+7*page, []byte("h"))
	mustWrite(t, as, at+2*page, []byte("new"))
	mustBeInSink(t, o, f)
	mustDo(t, o.Truncate(6*int64(page)+1))
	mustDo(t, o.Truncate(8*int64(page)))
	mustBeInSink(t, o, f)
	if len(base.took()) != 0 {
		t.Error("the source was written")
	}
}

// shortSink takes less than it is given, and says nothing of it.
type shortSink struct {
	*slowFile
	short bool
}

func (s *shortSink) WriteAt(p []byte, off int64) (int, error) {
	if s.short {
		p = p[:len(p)-1]
	}
	return s.slowFile.WriteAt(p, off)
}

func TestSyncToAShortSink(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := &shortSink{newSlowFile(3), true}
	o := newObject(t, m, f, f, 3*int64(page))
	as := newSpace(t, m)
	at := mapShared(t, as, o, 3)
	mustWrite(t, as, at+page, bytes.Repeat([]byte("s"), int(page)))
	if err := o.Sync(ctx, 0, ^uint64(0)); !errors.Is(err, io.ErrShortWrite) || !errors.Is(err, ErrIO) {
		t.Errorf("Sync: %v", err)
	}
	if err := as.Advise(ctx, at+2*page, page, AdviceRemove); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("AdviceRemove: %v", err)
	}
	f.short = false
	mustBeInSink(t, o, f.slowFile)
}

// A truncation that runs out of memory when the sink has been told of it leaves the
// length as it was, and gives the sink back what is there.
//
//	truncate                       elsewhere
//	sets frames aside, tells the sink
//	                               a fork, which needs more of them; memory is used up
//	cannot take pages out
func TestR13TruncateWithoutMemory(t *testing.T) {
	m := newMemory(t, 2<<20)
	f := newSlowFile(4)
	o := newObject(t, m, f, f, 4*int64(page))
	as := newSpace(t, m)
	at := mapShared(t, as, o, 4)
	mustWrite(t, as, at+2*page, []byte("dirty"))
	mustRead(t, as, at, 3*int(page)) // and page 3 not
	mustSync(t, o)
	var hog []addr.PFN
	punchHook = func(*AddressSpace) {
		punchHook = nil
		mustFork(t, mustFork(t, as))
		var err error
		hog, err = m.AllocSupervisor(int(m.Stats().FramesFree))
		mustDo(t, err)
	}
	defer func() { punchHook = nil }()
	err := o.Truncate(int64(page) + 10)
	m.FreeSupervisor(hog)
	if !errors.Is(err, ErrNoMemory) {
		t.Fatalf("Truncate: %v", err)
	}
	mustCheck(t, m)
	if n := o.Size(); n != 4*page {
		t.Errorf("it has %#x bytes", n)
	}
	mustSync(t, o)
	mustSee(t, as, at+2*page, []byte("dirty"))
	got, want := f.bytes(), mustRead(t, as, at, 3*int(page))
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("the sink has %#x bytes, and others than the object", len(got))
	}
	if err := as.Fault(ctx, at+3*page, Read); !errors.Is(err, ErrBus) || !errors.Is(err, ErrIO) {
		t.Errorf("what the sink has lost: %v", err)
	}
	mustDo(t, o.Truncate(4*int64(page)))
}

// runList beside a set of pages.
func TestRunList(t *testing.T) {
	g := rand.New(rand.NewPCG(7, 0))
	for range 300 {
		var l runList
		set := map[uint64]bool{}
		for range 20 {
			first, n := uint64(g.IntN(50)), uint64(1+g.IntN(8))
			if g.IntN(5) == 0 {
				l.cutAt(first)
				for p := range set {
					if p >= first {
						delete(set, p)
					}
				}
			} else {
				l.add(pageRun{first, first + n})
				for p := first; p < first+n; p++ {
					set[p] = true
				}
			}
			for i, r := range l {
				if r.first >= r.end || i > 0 && l[i-1].end >= r.first {
					t.Fatalf("%v is not runs in order", l)
				}
			}
			from := uint64(g.IntN(50))
			bits := l.among(from, 16)
			for i := range uint64(16) {
				if got := bits>>i&1 != 0; got != set[from+i] {
					t.Fatalf("%v: page %d: %v", l, from+i, got)
				}
			}
		}
	}
}
