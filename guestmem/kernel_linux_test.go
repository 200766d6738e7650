package guestmem

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The kernel as the judge: the same calls on an address space and on a window
// of this process. Placement, fork and brk need a process of their own and are
// not asked here.

const (
	kernelBase  addr.GVA = 0x2_0000_0000 - 16*page // far below what the kernel places itself
	kernelPages          = 40

	minusPage = ^uint64(0) &^ (page - 1) // a length that wraps
)

// kernelWindow is the kernel's side: a range of this process which nothing else
// uses. Accesses are system calls, so that they answer EFAULT.
type kernelWindow struct {
	t   *testing.T
	fds [2]int // memfds: through the first go reads, through the second writes
}

func newKernelWindow(t *testing.T) *kernelWindow {
	k := &kernelWindow{t: t}
	for i := range k.fds {
		fd, err := unix.MemfdCreate("differential", unix.MFD_CLOEXEC)
		mustDo(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		mustDo(t, unix.Ftruncate(fd, 1<<20))
		k.fds[i] = fd
	}
	if maps := k.maps(); maps != "" {
		t.Skipf("the window is in use:\n%s", maps)
	}
	t.Cleanup(func() { k.munmap(kernelBase, kernelPages*page) })
	return k
}

func (k *kernelWindow) mmap(at addr.GVA, length uint64, prot Prot, flags MapFlags) (addr.GVA, syscall.Errno) {
	r, _, e := unix.Syscall6(unix.SYS_MMAP, uintptr(at), uintptr(length), uintptr(prot), uintptr(flags|MapNoReserve), ^uintptr(0), 0)
	return addr.GVA(r), e
}

func (k *kernelWindow) munmap(at addr.GVA, length uint64) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_MUNMAP, uintptr(at), uintptr(length), 0)
	return e
}

func (k *kernelWindow) mprotect(at addr.GVA, length uint64, prot Prot) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_MPROTECT, uintptr(at), uintptr(length), uintptr(prot))
	return e
}

func (k *kernelWindow) discard(at addr.GVA, length uint64) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_MADVISE, uintptr(at), uintptr(length), unix.MADV_DONTNEED)
	return e
}

// read copies from the window: a write to a file, whose source it is.
func (k *kernelWindow) read(p []byte, at addr.GVA) (int, syscall.Errno) {
	n, _, e := unix.Syscall6(unix.SYS_PWRITE64, uintptr(k.fds[0]), uintptr(at), uintptr(len(p)), 0, 0, 0)
	if e != 0 {
		n = 0
	}
	if n > 0 {
		_, err := unix.Pread(k.fds[0], p[:n], 0)
		mustDo(k.t, err)
	}
	return int(n), e
}

func (k *kernelWindow) write(p []byte, at addr.GVA) (int, syscall.Errno) {
	_, err := unix.Pwrite(k.fds[1], p, 0)
	mustDo(k.t, err)
	n, _, e := unix.Syscall6(unix.SYS_PREAD64, uintptr(k.fds[1]), uintptr(at), uintptr(len(p)), 0, 0, 0)
	if e != 0 {
		n = 0
	}
	return int(n), e
}

// maps lists the window's areas in normal form.
func (k *kernelWindow) maps() string {
	b, err := os.ReadFile("/proc/self/maps")
	mustDo(k.t, err)
	return normalAreas(string(b))
}

// normalAreas joins neighbours that nothing visible separates, and leaves out
// what lies outside of the window and what one side cannot know.
func normalAreas(maps string) string {
	type line struct {
		start, end, off uint64
		perm            string
	}
	var out []line
	for sc := bufio.NewScanner(strings.NewReader(maps)); sc.Scan(); {
		var l line
		if _, err := fmt.Sscanf(sc.Text(), "%x-%x %s %x", &l.start, &l.end, &l.perm, &l.off); err != nil {
			continue
		}
		if l.start < uint64(kernelBase) || l.start >= uint64(kernelBase)+kernelPages*page {
			continue
		}
		if l.perm[3] == 'p' {
			l.off = 0
		}
		if n := len(out); n > 0 {
			prev := &out[n-1]
			if prev.end == l.start && prev.perm == l.perm && (l.perm[3] == 'p' || prev.off+(prev.end-prev.start) == l.off) {
				prev.end = l.end
				continue
			}
		}
		out = append(out, l)
	}
	var b strings.Builder
	for _, l := range out {
		fmt.Fprintf(&b, "%d-%d %s %x\n", (l.start-uint64(kernelBase))/page, (l.end-uint64(kernelBase))/page, l.perm, l.off/page)
	}
	return b.String()
}

// both is one operation on both sides.
type both struct {
	t   *testing.T
	k   *kernelWindow
	as  *AddressSpace
	log []string
}

func (b *both) compare(what string, got error, want syscall.Errno) {
	b.t.Helper()
	b.log = append(b.log, what)
	// A copy that did its head is a success to the kernel.
	if g := errnoOf(got); g != want {
		b.fail("%s: %v, the kernel says %d %v", what, got, want, want)
	}
	if diff := cmp.Diff(b.k.maps(), normalAreas(b.as.String())); diff != "" {
		b.fail("after %s: areas (-kernel +guestmm):\n%s", what, diff)
	}
}

func (b *both) fail(format string, args ...any) {
	b.t.Helper()
	b.t.Fatalf(format+"\nafter:\n%s", append(args, strings.Join(b.log[max(0, len(b.log)-25):], "\n"))...)
}

func (b *both) mmap(at addr.GVA, length uint64, prot Prot, flags MapFlags) {
	b.t.Helper()
	want, e := b.k.mmap(at, length, prot, flags)
	got, err := b.as.Map(ctx, MapOptions{Addr: at, Length: length, Prot: prot, Flags: flags})
	b.compare(fmt.Sprintf("mmap(%#x, %#x, %d, %#x)", at, length, prot, uint32(flags)), err, e)
	if e == 0 && got != want {
		b.fail("mmap at %v, the kernel at %v", got, want)
	}
}

func (b *both) munmap(at addr.GVA, length uint64) {
	b.t.Helper()
	e := b.k.munmap(at, length)
	b.compare(fmt.Sprintf("munmap(%#x, %#x)", at, length), b.as.Unmap(at, length), e)
}

func (b *both) mprotect(at addr.GVA, length uint64, prot Prot) {
	b.t.Helper()
	e := b.k.mprotect(at, length, prot)
	b.compare(fmt.Sprintf("mprotect(%#x, %#x, %d)", at, length, prot), b.as.Protect(at, length, prot), e)
}

func (b *both) discard(at addr.GVA, length uint64) {
	b.t.Helper()
	e := b.k.discard(at, length)
	b.compare(fmt.Sprintf("madvise(%#x, %#x, DONTNEED)", at, length), b.as.Discard(at, length), e)
}

func (b *both) access(at addr.GVA, n int, write bool, v byte) {
	b.t.Helper()
	got, want := bytes.Repeat([]byte{v}, n), bytes.Repeat([]byte{v}, n)
	var g, w int
	var err error
	var e syscall.Errno
	what := fmt.Sprintf("read(%#x, %d)", at, n)
	if write {
		what = fmt.Sprintf("write(%#x, %d, %d)", at, n, v)
		w, e = b.k.write(want, at)
		g, err = b.as.WriteAt(ctx, got, at)
	} else {
		w, e = b.k.read(want, at)
		g, err = b.as.ReadAt(ctx, got, at)
	}
	b.log = append(b.log, what)
	if g != w || g == 0 && errnoOf(err) != e || (err == nil) != (g == n) {
		b.fail("%s = %d, %v; the kernel %d, %v", what, g, err, w, e)
	}
	if !bytes.Equal(got[:g], want[:w]) {
		b.fail("%s: other bytes than the kernel's", what)
	}
}

// TestKernelDifferential drives both sides by random operations.
func TestKernelDifferential(t *testing.T) {
	rounds := 40
	if *soak {
		rounds = 2000
	}
	k := newKernelWindow(t)
	for round := range rounds {
		seed := uint64(round)
		if *soak {
			seed = rand.Uint64()
		}
		// Of its own test, so that its memory goes before the next.
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { differentialRound(t, k, seed) }) {
			return
		}
	}
}

func differentialRound(t *testing.T, k *kernelWindow, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 99))
	k.munmap(kernelBase, kernelPages*page)
	m := newMemory(t, 4<<20)
	b := &both{t: t, k: k, as: newSpace(t, m)}
	prots := []Prot{ProtNone, r_, rw, rw, rw, ProtWrite, ProtExec, rx}
	for range 150 {
		i := rng.IntN(kernelPages)
		n := 1 + rng.IntN(min(8, kernelPages-i))
		at, length := kernelBase+addr.GVA(i)*page, uint64(n)*page
		prot := prots[rng.IntN(len(prots))]
		if rng.IntN(8) == 0 { // lengths that are not whole pages
			length -= uint64(1 + rng.IntN(int(page)-1))
		}
		odd := rng.IntN(20) == 0
		if odd && rng.IntN(2) == 0 {
			at++
		}
		switch d := rng.IntN(100); {
		case d < 22:
			flags := MapAnonymous | MapFixed | MapPrivate
			switch rng.IntN(8) {
			case 0, 1:
				flags = MapAnonymous | MapFixed | MapShared
			case 2:
				flags |= MapFixedNoReplace
			case 3:
				flags = flags&^MapFixed | MapFixedNoReplace
			case 4:
				if odd {
					flags &^= mapType
				}
			}
			if odd {
				length = []uint64{0, length, ^uint64(0), 1 << 47, 1 << 63, minusPage}[rng.IntN(6)]
				prot |= Prot(rng.IntN(2) << 5)
			}
			b.mmap(at, length, prot, flags)
		case d < 34:
			if odd {
				length = []uint64{0, length, ^uint64(0), 1 << 47, 1 << 63, minusPage}[rng.IntN(6)]
			}
			b.munmap(at, length)
		case d < 52:
			if odd {
				length = []uint64{0, length, ^uint64(0), minusPage}[rng.IntN(4)]
				prot |= Prot(rng.IntN(4) << 3)
			}
			b.mprotect(at, length, prot)
		case d < 60:
			if odd {
				length = []uint64{0, length, ^uint64(0), minusPage}[rng.IntN(4)]
			}
			b.discard(at, length)
		default:
			from := at + addr.GVA(rng.IntN(int(page)))
			size := 1 + rng.IntN(64)
			if rng.IntN(3) == 0 {
				size = 1 + rng.IntN(3*int(page))
			}
			b.access(from, size, rng.IntN(2) == 0, byte(rng.IntN(255)+1))
		}
	}
	for i := range kernelPages {
		b.access(kernelBase+addr.GVA(i)*page, int(page), false, 0)
	}
	mustCheck(t, m)
}

// The corners of linux-mm by hand, each asked on both sides.
func TestKernelCorners(t *testing.T) {
	k := newKernelWindow(t)
	b := &both{t: t, k: k, as: newSpace(t, newMemory(t, 4<<20))}
	at := func(i int) addr.GVA { return kernelBase + addr.GVA(i)*page }
	fixedAnon := anon | MapFixed
	b.mmap(at(0), 4*page, rw, fixedAnon)
	b.mmap(at(6), 2*page, r_, MapShared|MapAnonymous|MapFixed)
	for _, length := range []uint64{0, ^uint64(0), 1 << 47, 1 << 63, minusPage, -uint64(at(0))} {
		for _, start := range []addr.GVA{at(0), at(0) + 1, at(5), at(5) + 1, 1<<47 - page, 1 << 47, 1 << 63, ^addr.GVA(0)} {
			for _, flags := range []MapFlags{fixedAnon, MapFixed | MapAnonymous, anon | MapFixedNoReplace} {
				b.mmap(start, length, rw, flags)
			}
			b.munmap(start, length)
			if start < at(8) || start >= 1<<47 { // never over something of this process
				b.mprotect(start, length, r_|0x40)
				if length == 0 || start+addr.GVA(length) < start {
					b.discard(start, length)
				}
			}
		}
	}
	for _, start := range []addr.GVA{at(0), at(3), at(4), at(5), at(7), at(8)} {
		b.mmap(start, page, rw, anon|MapFixedNoReplace)
		b.munmap(start, 1)
		b.mmap(start, page, rw|0x70, fixedAnon) // unknown protection
		for _, prot := range []Prot{0x10, 0x80, 8, 9, 15, 16 | 7} {
			b.mprotect(start, page, prot)
			b.mprotect(start, 0, prot)
		}
		b.mprotect(start, 4*page, rw)
		b.discard(start, 4*page)
		b.access(start, 2*int(page), true, 7)
		b.access(start-5, 2*int(page)+10, false, 7)
	}
	for flags := range MapFlags(16) { // the types
		if flags != 8 { // MAP_DROPPABLE
			b.mmap(at(20), page, rw, MapAnonymous|MapFixed|flags)
		}
	}
	for prot := range Prot(8) { // what may be read, written and executed
		b.mmap(at(30), page, rw, fixedAnon)
		b.access(at(30), 8, true, 1)
		b.mprotect(at(30), page, prot)
		b.access(at(30), 8, false, 2)
		b.access(at(30), 8, true, 3)
		b.mmap(at(31), page, prot, fixedAnon)
		b.access(at(31)+9, 8, true, 4)
		b.access(at(31)+9, 8, false, 5)
	}
}

// A hint that is free is taken by both; one that is not, and whole 2 MiB, are
// placed alike as far as alignment goes.
func TestKernelHints(t *testing.T) {
	k := newKernelWindow(t)
	b := &both{t: t, k: k, as: newSpace(t, newMemory(t, 4<<20))}
	for _, hint := range []addr.GVA{kernelBase, kernelBase + 5*page + 7, kernelBase + 9*page + 0xfff} {
		b.mmap(hint, 2*page, rw, anon)
	}
	aligned := func(hint addr.GVA) (kernel, ours int) {
		for range 4 {
			// Something between, so that the next place is not aligned by chance.
			const padding = 2<<20 + page
			pad, e := k.mmap(0, padding, ProtNone, anon)
			at, e2 := k.mmap(hint, 2<<20, ProtNone, anon)
			if e != 0 || e2 != 0 {
				t.Fatal(e, e2)
			}
			if at%(2<<20) == 0 {
				kernel++
			}
			defer k.munmap(pad, padding)
			defer k.munmap(at, 2<<20)
			mustMap(t, b.as, MapOptions{Length: padding, Flags: anon})
			if mustMap(t, b.as, MapOptions{Addr: hint, Length: 2 << 20, Flags: anon})%(2<<20) == 0 {
				ours++
			}
		}
		return kernel, ours
	}
	kernel, ours := aligned(0)
	if kernel != 4 {
		t.Skipf("this kernel aligns %d of 4", kernel)
	}
	if ours != 4 {
		t.Errorf("without a hint %d of 4 are aligned, the kernel's all", ours)
	}
	if kernel, ours = aligned(kernelBase); kernel < 4 && ours == 4 {
		t.Errorf("with a hint that is taken all are aligned, of the kernel's %d", kernel)
	}
}

// memfds counts the descriptors and mappings of memfds of a name.
func memfds(t *testing.T, name string) (fds, maps int) {
	dir, err := os.ReadDir("/proc/self/fd")
	mustDo(t, err)
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, "memfd:"+name) {
			fds++
		}
	}
	b, err := os.ReadFile("/proc/self/maps")
	mustDo(t, err)
	return fds, strings.Count(string(b), "memfd:"+name)
}

// R13: NewMemory that fails leaves nothing behind, and that succeeds nothing
// after Close.
func TestR13NewMemoryFailsWhole(t *testing.T) {
	const name = "r13test"
	try := func(what string, o MemoryOptions, want ...error) {
		t.Helper()
		o.Name = name
		m, err := NewMemory(o)
		if err == nil {
			m.Close()
			t.Errorf("%s succeeded", what)
			return
		}
		for _, w := range want {
			if !errors.Is(err, w) {
				t.Errorf("%s: %v, want %v", what, err, w)
			}
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v does not say which operation failed", what, err)
		}
		if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
			t.Errorf("%s left %d descriptors and %d mappings", what, fds, maps)
		}
	}
	try("no size", MemoryOptions{}, ErrInvalid, unix.EINVAL)
	try("odd size", MemoryOptions{Size: page + 1}, ErrInvalid)
	try("odd base", MemoryOptions{Size: page, Base: 1}, ErrInvalid)
	try("beyond 2^52", MemoryOptions{Size: page, Base: 1 << 52}, ErrInvalid)
	try("size wraps", MemoryOptions{Size: minusPage, Base: 2 * addr.GPA(page)}, ErrInvalid)
	try("largest size", MemoryOptions{Size: minusPage}, ErrInvalid)
	try("more than can be mapped", MemoryOptions{Size: 1 << 51}, unix.ENOMEM)
	try("more than can be mapped twice", MemoryOptions{Size: 100 << 40}, unix.ENOMEM)

	m, err := NewMemory(MemoryOptions{Size: 1 << 20, Name: name})
	mustDo(t, err)
	if fds, maps := memfds(t, name); fds != 1 || maps != 2 {
		t.Errorf("a memory has %d descriptors and %d mappings", fds, maps)
	}
	mustDo(t, m.Close())
	mustDo(t, m.Close())
	if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
		t.Errorf("a closed memory left %d descriptors and %d mappings", fds, maps)
	}
	if _, err := m.NewAddressSpace(SpaceOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a space in a closed memory: %v", err)
	}
	if _, err := m.AllocSupervisor(1); err == nil {
		t.Error("a supervisor frame of a closed memory")
	}

	// No descriptor is left. The limit is of the whole process: nothing runs
	// beside this test.
	var was unix.Rlimit
	mustDo(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	dir, err := os.ReadDir("/proc/self/fd")
	mustDo(t, err)
	mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(dir)) - 1, Max: was.Max}))
	var open []int // fill the holes below the limit
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		open = append(open, fd)
	}
	_, err = NewMemory(MemoryOptions{Size: 1 << 20, Name: name})
	for _, fd := range open {
		unix.Close(fd)
	}
	mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without a descriptor: %v", err)
	}

	// The second mapping does not fit.
	mustDo(t, unix.Getrlimit(unix.RLIMIT_AS, &was))
	mustDo(t, unix.Setrlimit(unix.RLIMIT_AS, &unix.Rlimit{Cur: vmSize(t) + 3<<30, Max: was.Max}))
	_, err = NewMemory(MemoryOptions{Size: 2 << 30, Name: name})
	mustDo(t, unix.Setrlimit(unix.RLIMIT_AS, &was))
	if !errors.Is(err, unix.ENOMEM) {
		t.Errorf("without address space: %v", err)
	}
	if fds, maps := memfds(t, name); fds != 0 || maps != 0 {
		t.Errorf("NewMemory that failed left %d descriptors and %d mappings", fds, maps)
	}
}

func vmSize(t *testing.T) uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	mustDo(t, err)
	var pages uint64
	_, err = fmt.Sscan(string(b), &pages)
	mustDo(t, err)
	return pages * uint64(os.Getpagesize())
}
