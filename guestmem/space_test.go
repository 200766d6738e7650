package guestmem

import (
	"bytes"
	"errors"
	"strings"
	"syscall"
	"testing"
)

func TestMapWriteReadUnmap(t *testing.T) {
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	a := mapAnon(t, as, 16*page)
	data := bytes.Repeat([]byte("guestmm!"), 3*page/8)
	mustWrite(t, as, a+100, data)
	mustSee(t, as, a+100, data)
	mustSee(t, as, a+5*page, make([]byte, page))
	mustCheck(t, m)
	mustDo(t, as.Unmap(a+page, page))
	n, err := as.ReadAt(ctx, make([]byte, 3*page), a)
	if n != page || !errors.Is(err, ErrNotMapped) || !errors.Is(err, syscall.EFAULT) {
		t.Fatalf("read over a hole = %d, %v", n, err)
	}
	mustCheck(t, m)
	mustDo(t, as.Unmap(a, 16*page))
	if s := m.Stats(); s.FramesInUse != 1 {
		t.Fatalf("after unmapping all: %+v, want the root only", s)
	}
}

func TestForkIsolatesBothSides(t *testing.T) {
	m := newMemory(t, 256<<20)
	as := newSpace(t, m)
	a := mapAnon(t, as, 8<<20)
	for off := uint64(0); off < 8<<20; off += 64 << 10 {
		mustWrite(t, as, a+offset(off), []byte("parent"))
	}
	child := mustFork(t, as)
	mustCheck(t, m)
	for off := uint64(0); off < 8<<20; off += 64 << 10 {
		mustSee(t, child, a+offset(off), []byte("parent"))
		if off%(128<<10) == 0 {
			mustWrite(t, child, a+offset(off), []byte("child!"))
		} else {
			mustWrite(t, as, a+offset(off), []byte("PARENT"))
		}
	}
	mustCheck(t, m)
	for off := uint64(0); off < 8<<20; off += 64 << 10 {
		if off%(128<<10) == 0 {
			mustSee(t, child, a+offset(off), []byte("child!"))
			mustSee(t, as, a+offset(off), []byte("parent"))
		} else {
			mustSee(t, child, a+offset(off), []byte("parent"))
			mustSee(t, as, a+offset(off), []byte("PARENT"))
		}
	}
	mustDo(t, child.Close())
	mustCheck(t, m)
}

func TestString(t *testing.T) {
	m := newMemory(t, 1<<20)
	as := newSpace(t, m)
	mapAt(t, as, 0x400000, page, ProtRead|ProtExec)
	as.SetBreak(0x500000)
	if end, err := as.Brk(0x501800); err != nil || end != 0x501800 {
		t.Fatalf("Brk = %v, %v", end, err)
	}
	want := "00400000-00401000 r-xp 00000000 00:00 0\n"
	got := as.String()
	if !strings.HasPrefix(got, want) || !strings.Contains(got, "00500000-00502000 rw-p 00000000 00:00 0 ") || !strings.HasSuffix(got, "[heap]\n") {
		t.Fatalf("String:\n%s", got)
	}
}
