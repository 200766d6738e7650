package guestmem

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func hostFile(tb testing.TB, pages int) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "file"))
	mustDo(tb, err)
	tb.Cleanup(func() { f.Close() })
	for i := range pages {
		_, err := f.Write(bytes.Repeat([]byte{'a' + byte(i)}, int(page)))
		mustDo(tb, err)
	}
	return f
}

func newHosted(tb testing.TB, m *Memory, f *os.File) *Object {
	tb.Helper()
	o, err := m.NewHostObject(f, "hosted")
	mustDo(tb, err)
	tb.Cleanup(o.Close)
	return o
}

func mustHave(tb testing.TB, f io.ReaderAt, off int64, want string) {
	tb.Helper()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, off); err != nil || string(got) != want {
		tb.Fatalf("the file has %q at %#x (%v), want %q", got, off, err, want)
	}
}

// Areas of a file of the host, in any space, and whoever else has the file see one
// another's writes at once; private copies are what they are.
func TestHostObjectIsTheFile(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := hostFile(t, 4)
	o := newHosted(t, m, f)
	as := newSpace(t, m)
	at := mapShared(t, as, o, 4)
	private := mapFile(t, as, o, 4, rw)
	mustSee(t, as, at+page, []byte("b"))
	mustWrite(t, as, private+2*page, []byte("mine"))
	child := mustFork(t, as)
	mustWrite(t, as, at, []byte("guest"))
	mustHave(t, f, 0, "guest")
	_, err := f.WriteAt([]byte("host"), int64(page))
	mustDo(t, err)
	mustSee(t, as, at+page, []byte("hostb"))
	mustSee(t, child, at+page, []byte("hostb"))
	mustSee(t, as, private+page, []byte("hostb"))
	mustWrite(t, child, at+2*page, []byte("child"))
	mustHave(t, f, 2*int64(page), "child")
	mustSee(t, as, private+2*page, []byte("mine"))
	mustDo(t, as.Store32(ctx, at+3*page, 0x64636261))
	mustHave(t, f, 3*int64(page), "abcd")
	if n, err := o.WriteAt(ctx, []byte("call"), 5*int64(page)); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if o.Size() != 5*page+4 {
		t.Errorf("size %#x", o.Size())
	}
	mustDo(t, as.Sync(at, page, SyncWait))
}

// The file's length is whoever's: what others cut off is a bus error, to Go code too,
// and what they add is there.
func TestR10HostFileIsCutByOthers(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := hostFile(t, 3)
	o := newHosted(t, m, f)
	as := newSpace(t, m)
	at := mapShared(t, as, o, 6)
	private := mapFile(t, as, o, 6, rw)
	mustRead(t, as, at, 3*int(page))
	mustRead(t, as, private, 3*int(page))
	mustDo(t, f.Truncate(int64(page)))
	var word [4]byte
	if n, err := as.ReadAt(ctx, word[:], at+page); n != 0 || !errors.Is(err, ErrBus) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	if n, err := as.ReadAt(ctx, make([]byte, 2*page), at); n != int(page) || !errors.Is(err, ErrBus) {
		t.Errorf("ReadAt over the end: %d, %v", n, err)
	}
	if _, err := as.WriteAt(ctx, word[:], at+2*page); !errors.Is(err, ErrBus) {
		t.Errorf("WriteAt: %v", err)
	}
	if _, err := as.Load64(ctx, at+2*page); !errors.Is(err, ErrBus) {
		t.Errorf("Load64: %v", err)
	}
	if _, err := as.WriteAt(ctx, word[:], private+2*page); !errors.Is(err, ErrBus) {
		t.Errorf("WriteAt to a copy: %v", err)
	}
	if err := as.Fault(ctx, at+4*page, Read); !errors.Is(err, ErrBus) {
		t.Errorf("Fault: %v", err)
	}
	mustDo(t, f.Truncate(5*int64(page)))
	_, err := f.WriteAt([]byte("more"), 4*int64(page))
	mustDo(t, err)
	mustSee(t, as, at+4*page, []byte("more"))
	mustSee(t, as, at+page, make([]byte, page))
}

// Who reads frames by another way than an address space meets the same: by
// guest-physical address, and to compare a space with its snapshot.
func TestR10HostFileIsCutUnderOtherReaders(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := hostFile(t, 3)
	o := newHosted(t, m, f)
	as := newSpace(t, m)
	private := mapFile(t, as, o, 3, rw)
	mustRead(t, as, private, 3*int(page))
	gpa := leafAt(as, private+2*page).Frame().GPA()
	snap, err := as.Snapshot()
	mustDo(t, err)
	defer snap.Close()
	mustWrite(t, as, private+2*page, []byte("c")) // as it was: pages are compared
	if d, err := diff(snap, as, ByContent); err != nil || len(d) != 0 {
		t.Fatalf("differences: %v, %v", d, err)
	}
	mustDo(t, f.Truncate(int64(page)))
	for _, n := range []int{8, 100} {
		if n, err := m.ReadAt(make([]byte, n), gpa); n != 0 || !errors.Is(err, ErrBus) {
			t.Errorf("ReadAt by guest-physical address: %d, %v", n, err)
		}
	}
	if _, err := m.Load64(gpa); !errors.Is(err, ErrBus) {
		t.Errorf("Load64 by guest-physical address: %v", err)
	}
	if d, err := diff(snap, as, ByContent); err != nil || len(d) != 1 || d[0].Start != private+2*page {
		t.Errorf("differences: %v, %v", d, err)
	}
}

// Truncate cuts the file, for all.
func TestHostObjectTruncate(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := hostFile(t, 4)
	o := newHosted(t, m, f)
	as := newSpace(t, m)
	at, private := mapShared(t, as, o, 4), mapFile(t, as, o, 4, rw)
	mustRead(t, as, at, 4*int(page))
	mustWrite(t, as, private+3*page, []byte("copy"))
	mustDo(t, o.Truncate(int64(page)+10))
	if st, _ := f.Stat(); st.Size() != int64(page)+10 {
		t.Errorf("the file has %d bytes", st.Size())
	}
	mustSee(t, as, at+page, append(bytes.Repeat([]byte("b"), 10), make([]byte, page-10)...))
	for _, base := range []addr.GVA{at, private} {
		if err := as.Fault(ctx, base+3*page, Read); !errors.Is(err, ErrBus) {
			t.Errorf("past the end: %v", err)
		}
	}
	mustDo(t, o.Truncate(4*int64(page)))
	mustSee(t, as, private+3*page, make([]byte, page))
	mustWrite(t, as, at+3*page, []byte("x"))
	mustDo(t, as.Advise(ctx, at+3*page, page, AdviceRemove))
	mustHave(t, f, 3*int64(page), "\x00")
	mustSee(t, as, at+3*page, make([]byte, page))
}

// Frames that were places for a file are the pool's own memory when the pool has them
// again: no guest sees or changes the file by one that it got later.
func TestR4HostFramesComeBackAsThePools(t *testing.T) {
	m := newMemory(t, 2<<20)
	f := hostFile(t, 64)
	o, err := m.NewHostObject(f, "hosted")
	mustDo(t, err)
	as := newSpace(t, m)
	at := mapShared(t, as, o, 64)
	mustRead(t, as, at, 64*int(page))
	pin := mustPin(t, as, at, 2, Write)
	o.Close()
	mustDo(t, as.Unmap(at, 64*page))
	mustCheck(t, m)
	copy(m.arena.Bytes(pin.Frames()[0]), "device") // into the file still
	mustHave(t, f, 0, "device")
	pin.Release()
	anon := mapAnon(t, as, 440*page)
	for i := range addr.GVA(440) {
		mustSee(t, as, anon+i*page, make([]byte, page))
		mustWrite(t, as, anon+i*page, []byte("secret"))
	}
	got := make([]byte, 64*page)
	_, err = f.ReadAt(got, 0)
	mustDo(t, err)
	for i := range 64 {
		want := bytes.Repeat([]byte{'a' + byte(i)}, int(page))
		if i == 0 {
			copy(want, "device")
		}
		if !bytes.Equal(got[i*int(page):][:page], want) {
			t.Fatalf("page %d of the file has %.16q", i, got[i*int(page):])
		}
	}
	mustDo(t, as.Unmap(anon, 440*page))
}

func TestHostObjectRefused(t *testing.T) {
	m := newMemory(t, 2<<20)
	r, w, err := os.Pipe()
	mustDo(t, err)
	defer r.Close()
	defer w.Close()
	if _, err := m.NewHostObject(r, "pipe"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a pipe: %v", err)
	}
	f := hostFile(t, 1)
	readOnly, err := os.Open(f.Name())
	mustDo(t, err)
	defer readOnly.Close()
	o := newHosted(t, m, readOnly)
	as := newSpace(t, m)
	if _, err := as.Map(ctx, MapOptions{Length: page, Prot: rw, Flags: MapShared, Object: o}); !errors.Is(err, syscall.EACCES) {
		t.Errorf("writable: %v", err)
	}
	at := mustMap(t, as, MapOptions{Length: page, Prot: r_, Flags: MapShared, Object: o})
	mustSee(t, as, at, []byte("a"))
	_, err = f.WriteAt([]byte("changed"), 0)
	mustDo(t, err)
	mustSee(t, as, at, []byte("changed"))
}
