package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func mustSeal(tb testing.TB, m *Memory) *Template {
	tb.Helper()
	t, err := m.Seal()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { t.Close() })
	return t
}

func mustClone(tb testing.TB, t *Template, o CloneOptions) *Memory {
	tb.Helper()
	m, err := t.Clone(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

// mixed adds regions of several kinds, and returns what they hold, by base.
func mixed(tb testing.TB, m *Memory) map[addr.GPA][]byte {
	tb.Helper()
	const size = 64 * page
	file := testFile(tb, size)
	hva, _ := foreignMapping(tb, size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	want := make(map[addr.GPA][]byte)
	for i, o := range []RegionOptions{
		{},
		{Backing: BackingAnonymous},
		{Backing: BackingFile, File: file},
		{Backing: BackingFilePrivate, File: file},
		{Backing: BackingForeign, Mapping: hva},
	} {
		o.Base, o.Size = addr.GPA(i)<<24, size
		r := mustAdd(tb, m, o)
		b := make([]byte, size)
		if o.File != nil {
			copy(b, filePattern(size))
		}
		for _, at := range []int{0, 5*page - 3, 40 * page} {
			p := []byte{byte(i) + 1, 0xee, 0xdd, 0xcc, 0xbb}
			mustWritePhys(tb, m, r.Base()+addr.GPA(at), p)
			copy(b[at:], p)
		}
		if o.Backing != BackingFile { // it is the file of the next one
			mustDo(tb, m.Discard(r.Base()+10*page, 4*page))
			clear(b[10*page : 14*page])
		}
		want[r.Base()] = b
	}
	// What the shared file was given is in the private mapping of it too, but
	// for the pages that were copied before.
	b := want[3<<24]
	copy(b, mustReadPhys(tb, m, 3<<24, size))
	return want
}

func mustHold(tb testing.TB, m *Memory, want map[addr.GPA][]byte, what string) {
	tb.Helper()
	for base, b := range want {
		if got := mustReadPhys(tb, m, base, len(b)); !bytes.Equal(got, b) {
			for i := range b {
				if got[i] != b[i] {
					tb.Fatalf("%s: at %v byte %#x is %#x, want %#x", what, base, i, got[i], b[i])
				}
			}
		}
	}
}

func cloneOf(want map[addr.GPA][]byte) map[addr.GPA][]byte {
	out := make(map[addr.GPA][]byte)
	for k, b := range want {
		out[k] = bytes.Clone(b)
	}
	return out
}

// A clone holds what the template's memory held, keeps its own stores to
// itself, and so on through a chain of templates of clones.
func TestTemplateChain(t *testing.T) {
	unchangedHost(t)
	m := newPhys(t)
	want := mixed(t, m)
	mustHold(t, m, want, "before the seal")
	for depth := range 4 {
		tmpl := mustSeal(t, m)
		if _, err := m.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("the sealed memory reads: %v", err)
		}
		if _, err := m.Seal(); !errors.Is(err, ErrClosed) {
			t.Errorf("sealed twice: %v", err)
		}
		mustDo(t, m.Close())
		if got := tmpl.Regions(); len(got) != len(want) || got[1].Base != 1<<24 || got[1].Size != 64*page {
			t.Errorf("the template has %+v", got)
		}
		a := mustClone(t, tmpl, CloneOptions{})
		b := mustClone(t, tmpl, CloneOptions{})
		mustDo(t, tmpl.Close())
		mustDo(t, tmpl.Close())
		if _, err := tmpl.Clone(CloneOptions{}); !errors.Is(err, ErrClosed) {
			t.Errorf("a clone of a closed template: %v", err)
		}
		mustHold(t, a, want, "a clone")
		other := cloneOf(want)
		for base := range want {
			for i, c := range []struct {
				m *Memory
				b []byte
			}{{a, want[base]}, {b, other[base]}} {
				for _, at := range []int{page * (depth + 20), 64*page - 2} {
					p := []byte{byte(depth), byte(i) + 0x70}
					mustWritePhys(t, c.m, base+addr.GPA(at), p)
					copy(c.b[at:], p)
				}
				mustDo(t, c.m.Discard(base+addr.GPA(depth+30+i)*page, 2*page))
				clear(c.b[(depth+30+i)*page : (depth+32+i)*page])
			}
		}
		mustHold(t, a, want, "a clone that was written")
		mustHold(t, b, other, "its sibling")
		mustDo(t, b.Close())
		m = a
	}
	mustDo(t, m.Close())
}

// Many clones at once, each with its hook; one hook that fails fails them all,
// and nothing of them is left.
func TestCloneN(t *testing.T) {
	unchangedHost(t)
	m := newPhys(t)
	want := mixed(t, m)
	tmpl := mustSeal(t, m)
	mustDo(t, m.Close())
	var mu sync.Mutex
	n := byte(0)
	seed := func(m *Memory) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		_, err := m.WriteAt([]byte{n}, 7)
		return err
	}
	clones, err := tmpl.CloneN(20, CloneOptions{Hook: seed})
	mustDo(t, err)
	seen := make(map[byte]bool)
	for _, c := range clones {
		v, err := c.Load8(7)
		mustDo(t, err)
		if seen[v] || v == 0 {
			t.Errorf("seed %d twice", v)
		}
		seen[v] = true
		mustDo(t, c.Store8(7, want[0][7]))
		mustHold(t, c, want, "a clone")
		mustDo(t, c.Close())
	}
	clones, err = tmpl.CloneN(8, CloneOptions{Hook: func(m *Memory) error {
		if err := seed(m); err != nil {
			return err
		}
		if v, err := m.Load8(7); err != nil || v%3 == 0 {
			return errors.Join(errRefused, err)
		}
		return nil
	}})
	if clones != nil || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "hook") {
		t.Errorf("CloneN with a hook that fails = %v, %v", clones, err)
	}
	if _, err := tmpl.CloneN(-1, CloneOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("CloneN(-1): %v", err)
	}
	mustDo(t, tmpl.Close())
}

// What cannot be sealed says why, and is as it was.
func TestSealRefused(t *testing.T) {
	m := newMemory(t, 1<<20)
	if _, err := m.Seal(); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "0x100000") {
		t.Errorf("Seal of a memory with a pool: %v", err)
	}
	p := newPhys(t)
	if _, err := p.Seal(); !errors.Is(err, ErrInvalid) {
		t.Errorf("Seal of nothing: %v", err)
	}
	want := mixed(t, p)
	l := &slotModel{}
	mustDo(t, p.AttachListener(l))
	l.refuse = errRefused
	if _, err := p.Seal(); !errors.Is(err, errRefused) {
		t.Errorf("Seal that a listener refuses: %v", err)
	}
	mustHold(t, p, want, "after that")
	l.refuse = nil
	mustDo(t, p.Store8(0, want[0][0]))
	tmpl := mustSeal(t, p)
	if len(l.regions) != 0 {
		t.Errorf("the listener still has %v", l.regions)
	}
	p.DetachListener(l)
	mustHold(t, mustClone(t, tmpl, CloneOptions{}), want, "a clone")
}

// A memfd that somebody else has mapped for writing is copied: the template
// does not change with it.
func TestSealOfMemfdMappedElsewhere(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 16 * page})
	mustWritePhys(t, m, page, []byte("sealed"))
	fd, _, ok := r.FD()
	if !ok {
		t.Fatal("no descriptor")
	}
	_, b := foreignMapping(t, 16*page, unix.MAP_SHARED, fd)
	tmpl := mustSeal(t, m)
	copy(b[page:], "broken")
	if got := mustReadPhys(t, mustClone(t, tmpl, CloneOptions{}), page, 6); string(got) != "sealed" {
		t.Errorf("the clone reads %q", got)
	}
}

// Nobody can write to a template, and its file has the holes of its memory.
func TestTemplateIsSealed(t *testing.T) {
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		m := newPhys(t)
		mustAdd(t, m, RegionOptions{Size: 256 << 20, Backing: backing})
		mustWritePhys(t, m, 100<<20, []byte("x"))
		mustReadPhys(t, m, 0, 1<<20) // zeroes are not kept
		tmpl := mustSeal(t, m)
		f, err := tmpl.File(0)
		mustDo(t, err)
		defer f.Close()
		if _, err := f.WriteAt([]byte("y"), 100<<20); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v: writing: %v", backing, err)
		}
		if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v: truncating: %v", backing, err)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v: mapping for writing: %v", backing, err)
		}
		var st unix.Stat_t
		mustDo(t, unix.Fstat(int(f.Fd()), &st))
		if limit := int64(2 << 20); st.Blocks*512 > limit {
			t.Errorf("%v: the template holds %d bytes, of one page that was written", backing, st.Blocks*512)
		}
		if _, err := tmpl.File(1); !errors.Is(err, ErrInvalid) {
			t.Errorf("file of a region that is not there: %v", err)
		}
	}
}

// An idle clone of 256 MiB costs next to no memory, read or not.
func TestIdleClonesAreCheap(t *testing.T) {
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Size: 256 << 20, Populate: PopulateNow})
	p := make([]byte, 256<<20)
	for i := 0; i < len(p); i += page {
		p[i] = 1
	}
	mustWritePhys(t, m, 0, p)
	p = nil
	tmpl := mustSeal(t, m)
	private := func() (kib int64) {
		b, err := os.ReadFile("/proc/self/smaps_rollup")
		mustDo(t, err)
		for _, line := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(line, "Anonymous:") {
				var n int64
				if _, err := fmt.Sscan(strings.Fields(line)[1], &n); err != nil {
					t.Fatal(line, err)
				}
				kib += n
			}
		}
		return kib
	}
	const n = 100
	runtime.GC()
	before := private()
	clones, err := tmpl.CloneN(n, CloneOptions{})
	mustDo(t, err)
	for i, c := range clones {
		for at := addr.GPA(0); at < 1<<20; at += page {
			if v, err := c.Load8(at + addr.GPA(i)<<20); v != 1 || err != nil {
				t.Fatalf("clone %d reads %d, %v", i, v, err)
			}
		}
	}
	after := private()
	if per := (after - before) / n; per > 1024 {
		t.Errorf("each idle clone costs %d KiB of private memory", per)
	} else {
		t.Logf("%d KiB for each clone", per)
	}
	for _, c := range clones {
		mustDo(t, c.Close())
	}
}
