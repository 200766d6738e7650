package guestmem

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// What hits, and what faults, allocates nothing in the Go heap.
func TestAllocations(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checking invariants allocates")
	}
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	gva := mapAnon(t, as, 4096*page)
	mustWrite(t, as, gva, []byte("hit"))
	shared := mustMap(t, as, MapOptions{Length: 4096 * page, Prot: rw, Flags: MapShared | MapAnonymous})
	o := newFile(t, m, zeroReader{}, 4096*int64(page))
	defer o.Close()
	file := mapFile(t, as, o, 4096, rw)
	mustDo(t, as.Populate(ctx, addr.Range{Start: file, End: file + 4096*page}, Read))
	mustDo(t, as.Populate(ctx, addr.Range{Start: shared, End: shared + 4096*page}, Read))
	mustDo(t, as.Discard(file, 2048*page))
	mustDo(t, as.Discard(shared, 2048*page))
	mustDo(t, as.Populate(ctx, addr.Range{Start: gva, End: gva + 4096*page}, Write))
	mustDo(t, as.Discard(gva+page, 4095*page))
	mustDo(t, as.Fault(ctx, gva+page, Write))
	h := m.NewHandle()
	defer h.Close()
	a := as.With(h)
	var buf [64]byte
	var big [3 * page]byte
	next := func(base addr.GVA) func() addr.GVA {
		i := addr.GVA(1)
		return func() addr.GVA { i++; return base + i*page }
	}
	anonNext, fileNext, writeNext, sharedNext := next(gva), next(file), next(file+1024*page), next(shared)
	for name, fn := range map[string]func(){
		"read":                 func() { as.ReadAt(ctx, buf[:], gva) },
		"read, handle":         func() { a.ReadAt(ctx, buf[:], gva) },
		"read of three pages":  func() { a.ReadAt(ctx, big[:], gva) },
		"write":                func() { as.WriteAt(ctx, buf[:], gva) },
		"write, handle":        func() { a.WriteAt(ctx, buf[:], gva) },
		"load":                 func() { as.Load64(ctx, gva) },
		"store":                func() { a.Store32(ctx, gva, 1) },
		"compare and swap":     func() { as.CompareAndSwap64(ctx, gva, 1, 1) },
		"fault, there":         func() { as.Fault(ctx, gva, Write) },
		"fault, empty page":    func() { mustDo(t, as.Fault(ctx, anonNext(), Write)) },
		"fault, object's page": func() { mustDo(t, a.Fault(ctx, fileNext(), Read)) },
		"fault, copy of it":    func() { mustDo(t, as.Fault(ctx, writeNext(), Write)) },
		"fault, shared page":   func() { mustDo(t, a.Fault(ctx, sharedNext(), Write)) },
	} {
		if n := testing.AllocsPerRun(400, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	child := mustFork(t, as)
	mustDo(t, as.Fault(ctx, gva, Write)) // the path
	copyNext := next(gva)
	if n := testing.AllocsPerRun(400, func() { mustDo(t, as.Fault(ctx, copyNext(), Write)) }); n > 0.2 {
		t.Errorf("copy on write: %v allocations", n)
	}
	mustDo(t, child.Close())
}

func TestStringIsTheFormatOfMaps(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	if s := as.String(); s != "" {
		t.Errorf("no areas: %q", s)
	}
	o, err := m.NewFileObject(strings.NewReader("x"), 1, "/bin/a file with spaces")
	mustDo(t, err)
	defer o.Close()
	put := func(at addr.GVA, o MapOptions) {
		t.Helper()
		o.Addr, o.Flags = at, o.Flags|MapFixed
		mustMap(t, as, o)
	}
	put(0x10000, MapOptions{Length: 1, Prot: ProtNone, Flags: MapPrivate})
	put(0x400000, MapOptions{Length: 2 * page, Prot: rx, Flags: MapPrivate, Object: o, Offset: 0x3000})
	put(0x402000, MapOptions{Length: page, Prot: ProtWrite, Flags: MapShared})
	put(0x7f0000000000, MapOptions{Length: page, Prot: ProtRead | ProtExec, Flags: MapPrivate, Kind: KindVDSO})
	put(DefaultHighest-page, MapOptions{Length: page, Prot: rw | ProtExec, Flags: MapPrivate | MapStack, Kind: KindStack})
	as.SetBreak(0x600000)
	_, err = as.Brk(0x600001)
	mustDo(t, err)
	want := []string{
		"00010000-00011000 ---p 00000000 00:00 0",
		"00400000-00402000 r-xp 00003000 00:00 0                                  /bin/a file with spaces",
		"00402000-00403000 -w-s 00000000 00:00 0",
		"00600000-00601000 rw-p 00000000 00:00 0                                  [heap]",
		"7f0000000000-7f0000001000 r-xp 00000000 00:00 0                          [vdso]",
		"7fffffffe000-7ffffffff000 rwxp 00000000 00:00 0                          [stack]",
		"",
	}
	if diff := cmp.Diff(want, strings.Split(as.String(), "\n")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var infos []AreaInfo
	for a := range as.Areas() {
		infos = append(infos, a)
		for _, gva := range []addr.GVA{a.Start, a.End - 1} {
			if got, ok := as.FindArea(gva); !ok || got != a {
				t.Errorf("FindArea(%v) = %v, %v", gva, got, ok)
			}
		}
		if _, ok := as.FindArea(a.Start - 1); ok && len(infos) != 3 {
			t.Errorf("an area below %v", a.Start)
		}
	}
	if diff := cmp.Diff(AreaInfo{Range: addr.Range{Start: 0x400000, End: 0x402000}, Prot: rx, Offset: 0x3000, Name: "/bin/a file with spaces"}, infos[1]); diff != "" {
		t.Error(diff)
	}
	if s := as.Stats(); s.Areas != 6 || s.MappedBytes != 7*page {
		t.Errorf("%+v", s)
	}
	// An iteration sees the areas as they were when it began, and may be left.
	n := 0
	for a := range as.Areas() {
		mustDo(t, as.Unmap(a.Start, a.Len()))
		n++
	}
	if n != 6 || as.String() != "" {
		t.Errorf("iterated over %d areas; left: %s", n, as)
	}
	mapAt(t, as, pg(0), page, rw)
	mapAt(t, as, pg(2), page, rw)
	for range as.Areas() {
		break
	}
}

func TestReadCString(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), 3*page, rw)
	long := strings.Repeat("s", 2*int(page)+100)
	end := pg(3)
	for _, c := range []struct {
		at    addr.GVA
		write string
		max   int
		want  string
		errno syscall.Errno
	}{
		{pg(0), "\x00", 10, "", 0},
		{pg(0), "abc\x00def", 10, "abc", 0},
		{pg(0), "abc\x00def", 4, "abc", 0},
		{pg(0), "abc\x00def", 3, "", syscall.ENAMETOOLONG},
		{pg(0), "abc", 0, "", syscall.ENAMETOOLONG},
		{pg(0), "abc", -5, "", syscall.ENAMETOOLONG},
		{pg(1) - 2, "abc\x00", 100, "abc", 0},
		{pg(1) - 3, "abc\x00", 100, "abc", 0},
		{pg(0) + 17, long + "\x00", len(long) + 1, long, 0},
		{pg(0) + 17, long + "\x00", len(long), "", syscall.ENAMETOOLONG},
		{end - 4, "abc\x00", 1 << 30, "abc", 0}, // looks at nothing past the NUL
		{end - 3, "abc", 1 << 30, "", syscall.EFAULT},
		{end - 3, "abc", 3, "", syscall.ENAMETOOLONG}, // and at nothing past the limit
		{end - 3, "abc", 4, "", syscall.EFAULT},
		{end, "", 4, "", syscall.EFAULT},
		{pg(0), strings.Repeat("x", 256) + "\x00", 1000, strings.Repeat("x", 256), 0},
		{pg(0), strings.Repeat("x", 255) + "\x00", 1000, strings.Repeat("x", 255), 0},
		{pg(0), strings.Repeat("x", 512) + "\x00", 512, "", syscall.ENAMETOOLONG},
	} {
		mustDo(t, as.Discard(pg(0), 3*page))
		mustWrite(t, as, c.at, []byte(c.write))
		got, err := as.ReadCString(ctx, c.at, c.max)
		mustErrno(t, fmt.Sprintf("%.10q at %v, at most %d", c.write, c.at, c.max), err, c.errno)
		if got != c.want {
			t.Errorf("%.10q at %v, at most %d: %.20q", c.write, c.at, c.max, got)
		}
	}
	// It touches no page that it need not.
	mustDo(t, as.Discard(pg(0), 3*page))
	mustWrite(t, as, pg(1)-4, []byte("abc\x00"))
	if _, err := as.ReadCString(ctx, pg(1)-4, 4096); err != nil || as.leafEntry(pg(1)) != 0 {
		t.Errorf("the page after the string was touched (%v)", err)
	}
}

func TestWords(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), 2*page, rw)
	for off := range addr.GVA(16) {
		for _, at := range []addr.GVA{pg(0) + off, pg(1) - 8 + off} {
			want32, want64 := syscall.Errno(0), syscall.Errno(0)
			if off%4 != 0 {
				want32 = syscall.EINVAL
			}
			if off%8 != 0 {
				want64 = syscall.EINVAL
			}
			_, err := as.Load32(ctx, at)
			mustErrno(t, "load32", err, want32)
			mustErrno(t, "store32", as.Store32(ctx, at, 1), want32)
			_, err = as.CompareAndSwap32(ctx, at, 1, 1)
			mustErrno(t, "cas32", err, want32)
			_, err = as.Load64(ctx, at)
			mustErrno(t, "load64", err, want64)
			mustErrno(t, "store64", as.Store64(ctx, at, 1), want64)
			_, err = as.CompareAndSwap64(ctx, at, 1, 1)
			mustErrno(t, "cas64", err, want64)
		}
	}
	mustDo(t, as.Discard(pg(0), page))
	mustWrite(t, as, pg(0), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	if v, err := as.Load64(ctx, pg(0)); err != nil || v != 0x0807060504030201 {
		t.Errorf("load64 = %#x, %v", v, err)
	}
	if v, err := as.Load32(ctx, pg(0)+4); err != nil || v != 0x08070605 {
		t.Errorf("load32 = %#x, %v", v, err)
	}
	if ok, err := as.CompareAndSwap32(ctx, pg(0), 0, 9); ok || err != nil {
		t.Errorf("swapped another value: %v, %v", ok, err)
	}
	if ok, err := as.CompareAndSwap32(ctx, pg(0), 0x04030201, 0xaabbccdd); !ok || err != nil {
		t.Errorf("not swapped: %v, %v", ok, err)
	}
	mustSee(t, as, pg(0), []byte{0xdd, 0xcc, 0xbb, 0xaa, 5, 6, 7, 8})
	if ok, err := as.CompareAndSwap64(ctx, pg(0)+8, 0, ^uint64(0)); !ok || err != nil {
		t.Errorf("not swapped: %v, %v", ok, err)
	}
	// To compare is to write, whatever the word holds; to load is not.
	mustDo(t, as.Protect(pg(0), page, r_))
	if _, err := as.CompareAndSwap32(ctx, pg(0), 0, 1); !errors.Is(err, ErrAccess) {
		t.Errorf("compare and swap of a read-only word: %v", err)
	}
	if _, err := as.Load32(ctx, pg(0)); err != nil {
		t.Error(err)
	}
	child := mustFork(t, as)
	was, err := as.Load64(ctx, pg(1))
	mustDo(t, err)
	if ok, err := child.CompareAndSwap64(ctx, pg(1), was, was+1); err != nil || !ok {
		t.Errorf("compare and swap after fork: %v, %v", ok, err)
	}
	if v, err := as.Load64(ctx, pg(1)); err != nil || v != was {
		t.Errorf("the parent reads %#x, %v; was %#x", v, err, was)
	}
}

// A copy longer than one section takes, over many pages and tables.
func TestLongCopies(t *testing.T) {
	m := newMemory(t, 32<<20)
	as := newSpace(t, m)
	const n = 3<<20 + 123
	gva := mapAt(t, as, 0x40000000-2<<20, 4<<20, rw) + 77
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	mustWrite(t, as, gva, data)
	mustSee(t, as, gva, data)
	child := mustFork(t, as)
	mustSee(t, child, gva, data)
	mustDo(t, as.Unmap(0x40000000+page, page))
	got := make([]byte, n)
	want := int(0x40000000 + page - gva)
	if k, err := as.ReadAt(ctx, got, gva); k != want || !errors.Is(err, ErrNotMapped) || string(got[:k]) != string(data[:k]) {
		t.Errorf("read %d, want %d: %v", k, want, err)
	}
	if k, err := as.WriteAt(ctx, got, gva); k != want || !errors.Is(err, ErrNotMapped) {
		t.Errorf("write %d, want %d: %v", k, want, err)
	}
	mustSee(t, child, gva, data)
}
