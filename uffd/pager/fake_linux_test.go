package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

func TestMain(m *testing.M) { childMain(); testutil.Main(m) }

// A fakeKernel is a userfaultfd with a guest behind it, with the kernel's own
// order of things: a remover waits until its event is read, then lets installs
// go on, and only then takes the pages away.
type fakeKernel struct {
	fd int // an eventfd, readable while events wait

	mu       sync.Mutex
	cond     sync.Cond
	pageSize uint64
	pages    map[addr.HVA]*fakePage
	mapped   func(addr.HVA) bool
	faults   []uffd.Event
	layout   []uffd.Event
	changing int
	reads    int    // events handed out
	wakes    uint64 // wakes so far, of anything
	woken    map[addr.HVA]uint64
	closed   bool
	dead     bool // the process is gone

	// script is asked before each install. It returns true to answer itself.
	script func(op string, start addr.HVA, length uint64) (uint64, error, bool)
	// beforeZap runs in the remover between the read of its event and the zap.
	beforeZap func()
	// afterZap runs in the reader, between the zap of what it has read and its
	// return from Read: only with zapInRead.
	afterZap  func()
	zapInRead bool
	log       []string
}

type fakePage struct {
	data  []byte
	armed bool
	kind  string
}

func newFake(t testing.TB) *fakeKernel {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeKernel{fd: fd, pageSize: smallPage, pages: map[addr.HVA]*fakePage{}, woken: map[addr.HVA]uint64{}}
	f.cond.L = &f.mu
	f.mapped = func(a addr.HVA) bool { return a >= base }
	t.Cleanup(func() { unix.Close(fd) })
	return f
}

const mapHugeNoReserve = unix.MAP_HUGETLB | unix.MAP_NORESERVE

const base addr.HVA = 0x10_0000_0000

func (f *fakeKernel) Fd() int { return f.fd }

// Features are those of a userfaultfd that tells of all that a guest does.
func (f *fakeKernel) Features() uffd.Features {
	return uffd.FeatureEventRemove | uffd.FeatureEventUnmap | uffd.FeatureEventRemap
}

func (f *fakeKernel) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(f.fd, one[:])
}

func (f *fakeKernel) Read(events []uffd.Event) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, syscall.EBADF
	}
	n := 0
	for n < len(events) && len(f.faults) > 0 {
		events[n] = f.faults[0]
		f.faults = f.faults[1:]
		n++
	}
	for n < len(events) && len(f.layout) > 0 {
		ev := f.layout[0]
		events[n] = ev
		f.layout = f.layout[1:]
		n++
		if f.zapInRead && ev.Kind == uffd.EventRemove {
			f.changing--
			f.zap(ev.Start, ev.End)
			f.mu.Unlock()
			f.afterZap()
			f.mu.Lock()
		}
	}
	f.reads += n
	if len(f.faults)+len(f.layout) == 0 {
		var count [8]byte
		_, _ = unix.Read(f.fd, count[:])
	}
	f.cond.Broadcast()
	return n, nil
}

// install does what all installs have in common. f.mu is held.
func (f *fakeKernel) install(op string, start addr.HVA, length uint64, make func(off uint64) *fakePage) (uint64, error) {
	if f.script != nil {
		if done, err, ok := f.script(op, start, length); ok {
			for off := uint64(0); off < done; off += f.pageSize {
				f.pages[start+addr.HVA(off)] = make(off)
			}
			f.wakeLocked(start, done)
			return done, err
		}
	}
	switch {
	case f.dead:
		return 0, syscall.ESRCH
	case f.changing > 0:
		return 0, syscall.EAGAIN
	case start == 0:
		return 0, syscall.EINVAL
	}
	f.log = append(f.log, fmt.Sprintf("%s %#x+%#x", op, uint64(start), length))
	for off := uint64(0); off < length; off += f.pageSize {
		a := start + addr.HVA(off)
		if !f.mapped(a) {
			return off, syscall.ENOENT
		}
		if f.pages[a] != nil {
			f.wakeLocked(start, off)
			return off, syscall.EEXIST
		}
		f.pages[a] = make(off)
	}
	f.wakeLocked(start, length)
	return length, nil
}

func (f *fakeKernel) Copy(dst addr.HVA, src []byte, fl uffd.Flags) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.install("copy", dst, uint64(len(src)), func(off uint64) *fakePage {
		return &fakePage{bytes.Clone(src[off : off+f.pageSize]), fl&uffd.Armed != 0, "copy"}
	})
}

func (f *fakeKernel) Zero(start addr.HVA, length uint64, _ uffd.Flags) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.install("zero", start, length, func(uint64) *fakePage {
		return &fakePage{make([]byte, f.pageSize), false, "zero"}
	})
}

func (f *fakeKernel) Continue(start addr.HVA, length uint64, fl uffd.Flags) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.install("continue", start, length, func(uint64) *fakePage {
		return &fakePage{nil, fl&uffd.Armed != 0, "continue"}
	})
}

func (f *fakeKernel) Poison(start addr.HVA, length uint64, _ uffd.Flags) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.install("poison", start, length, func(uint64) *fakePage {
		return &fakePage{[]byte("poison"), false, "poison"}
	})
}

func (f *fakeKernel) WriteProtect(start addr.HVA, length uint64, fl uffd.Flags) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return syscall.ESRCH
	}
	if f.changing > 0 {
		return syscall.EAGAIN
	}
	for off := uint64(0); off < length; off += f.pageSize {
		if p := f.pages[start+addr.HVA(off)]; p != nil {
			p.armed = fl&uffd.Armed != 0
		}
	}
	f.wakeLocked(start, length)
	return nil
}

func (f *fakeKernel) Wake(start addr.HVA, length uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wakeLocked(start, length)
	return nil
}

func (f *fakeKernel) wakeLocked(start addr.HVA, length uint64) {
	f.wakes++
	for a := range f.woken {
		if a >= start && a < start+addr.HVA(length) {
			f.woken[a]++
		}
	}
	f.cond.Broadcast()
}

func (f *fakeKernel) Unregister(start addr.HVA, length uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf("unregister %#x+%#x", uint64(start), length))
	f.wakeLocked(start, length)
	return nil
}

func (f *fakeKernel) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.cond.Broadcast()
	return nil
}

// touch is a load of the guest: it returns what the page at a holds, faulting
// until there is one. It sleeps until woken, as in the kernel.
func (f *fakeKernel) touch(a addr.HVA) ([]byte, error) {
	a &^= addr.HVA(f.pageSize - 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if p := f.pages[a]; p != nil {
			return p.data, nil // whoever has closed the descriptor since
		}
		if f.closed {
			return nil, errors.New("descriptor closed")
		}
		if _, ok := f.woken[a]; !ok {
			f.woken[a] = 0
		}
		before := f.woken[a]
		f.faults = append(f.faults, uffd.Event{Kind: uffd.EventFault, Addr: a})
		f.signal()
		for f.woken[a] == before && !f.closed {
			f.cond.Wait()
		}
	}
}

// remove is MADV_DONTNEED by the guest.
func (f *fakeKernel) remove(start, end addr.HVA) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changing++
	f.layout = append(f.layout, uffd.Event{Kind: uffd.EventRemove, Start: start, End: end})
	want := f.reads + len(f.faults) + len(f.layout)
	f.signal()
	for f.reads < want {
		f.cond.Wait()
	}
	if f.zapInRead {
		return
	}
	f.changing--
	if f.beforeZap != nil {
		f.mu.Unlock()
		f.beforeZap()
		f.mu.Lock()
	}
	f.zap(start, end)
}

func (f *fakeKernel) zap(start, end addr.HVA) {
	for a := start; a < end; a += addr.HVA(f.pageSize) {
		delete(f.pages, a)
	}
}

func (f *fakeKernel) event(ev uffd.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ev.Kind == uffd.EventFault {
		f.faults = append(f.faults, ev)
	} else {
		f.layout = append(f.layout, ev)
	}
	f.signal()
}

func (f *fakeKernel) with(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

// A testSource is an image whose every page can be told from every other, and
// that can be made slow or broken.
type testSource struct {
	size uint64
	read func(ctx context.Context, off uint64, n int) error // nil: at once
}

func (s *testSource) Size() uint64 { return s.size }

func (s *testSource) ReadPages(ctx context.Context, p []byte, off uint64) error {
	if s.read != nil {
		if err := s.read(ctx, off, len(p)); err != nil {
			return err
		}
	}
	if err := checkRead(p, off, s.size); err != nil {
		return err
	}
	for i := 0; i < len(p); i += smallPage {
		fillPage(p[i:i+smallPage], off+uint64(i))
	}
	return nil
}

// A quickSource has everything at hand.
type quickSource struct{ testSource }

func (s *quickSource) TryReadPages(p []byte, off uint64) error {
	return s.ReadPages(context.Background(), p, off)
}

// fillPage writes the image's bytes of the page at off: never zero.
func fillPage(p []byte, off uint64) {
	word := off/smallPage*0x9e3779b97f4a7c15 | 1
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], word+uint64(i)<<32)
	}
}

func imagePage(off uint64) []byte {
	p := make([]byte, smallPage)
	fillPage(p, off)
	return p
}

// within is the deadline of every wait in these tests; it is never what they
// measure.
const within = 60 * time.Second

// serveFake adds a guest of n pages at base on a fake kernel.
func serveFake(t testing.TB, s *Server, f *fakeKernel, o GuestOptions) *Guest {
	t.Helper()
	if o.Regions == nil {
		o.Regions = []Region{{Start: base, Size: o.Source.Size()}}
	}
	if o.Fail == nil {
		o.Fail = func(error) {}
	}
	g, err := s.add(f, true, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func newTestServer(t testing.TB, o Options) *Server {
	t.Helper()
	s := NewServer(o)
	t.Cleanup(func() {
		for _, g := range s.Guests() {
			g.Close()
		}
		s.Close()
	})
	return s
}

// mustTouch loads a page and wants it to be want.
func mustTouch(t testing.TB, f *fakeKernel, a addr.HVA, want []byte) {
	t.Helper()
	got := testutil.Proceeds(t, goTouch(f, a), fmt.Sprintf("guest's load of %v", a))
	if !bytes.Equal(got, want) {
		t.Fatalf("load of %v: %x..., want %x...", a, head(got), head(want))
	}
}

func head(b []byte) []byte { return b[:min(16, len(b))] }

// goTouch loads a page in a goroutine.
func goTouch(f *fakeKernel, a addr.HVA) <-chan []byte {
	ch := make(chan []byte, 1)
	go func() {
		data, err := f.touch(a)
		if err != nil {
			data = []byte(err.Error())
		}
		ch <- data
	}()
	return ch
}

func page(i int) addr.HVA { return base + addr.HVA(i)*smallPage }

var zeroPage = make([]byte, smallPage)
