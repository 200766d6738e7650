package pager

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// An armed is memory that is restored lazily, and who is told of writes to its armed
// pages: what a snapshot does, without windows.
type armedMemory struct {
	t      *testing.T
	m      *guestmem.Memory
	region *guestmem.Region
	armer  guestmem.Armer
	r      *Restore

	mu    sync.Mutex
	told  map[uint64]int    // how often each page was handed over; mu
	found map[uint64][]byte // what it held then, the last time; mu
}

const (
	armPages = 2048
	armBase  = addr.GPA(1 << 20)
)

// newArmed has the reads of pages from slow on wait until the gate is closed.
func newArmed(t *testing.T, slow uint64, gate chan struct{}, rest Rest) *armedMemory {
	t.Helper()
	return newArmedOn(t, nil, slow, gate, rest)
}

func newArmedOn(t *testing.T, server *Server, slow uint64, gate chan struct{}, rest Rest) *armedMemory {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	held := func() {}
	if slow == 0 && rest == FillRest {
		// Not all of it comes before something is held, below.
		slow, gate = armPages-64, make(chan struct{})
		held = func() { close(gate) }
	}
	img := savedImage{[]snapfile.Region{{Name: "ram", Base: armBase, Size: armPages * smallPage, PageSize: smallPage}}}
	a := &armedMemory{t: t, m: newMemory(t), told: map[uint64]int{}, found: map[uint64][]byte{}}
	a.r = startRestore(t, a.m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{
		Server: server, Rest: rest, RecordFor: -1, WorkingSets: NoWorkingSet, OnFailure: Park, writeFault: a.handOver,
		wrap: func(s Source) Source {
			if slow == 0 {
				return s
			}
			return &slowSource{s, slow, gate} // but for the very last page
		},
	})
	a.region = a.r.Regions()[0]
	// Held, so that the memory is not given back when all has come.
	s, err := a.m.Slice(armBase+(armPages-1)*smallPage, smallPage, guestmem.Read)
	held()
	must(t, err)
	t.Cleanup(s.Release)
	a.armer = a.r.guest.FaultServer().(guestmem.Armer)
	return a
}

// A slowSource gives pages from one on only once a channel is closed.
type slowSource struct {
	Source
	slow uint64
	gate chan struct{}
}

func (s *slowSource) ReadPages(ctx context.Context, p []byte, off uint64) error {
	if last := uint64(armBase) + (armPages-1)*smallPage; off < last && off+uint64(len(p)) > uint64(armBase)+s.slow*smallPage {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Source.ReadPages(ctx, p, off)
}

func (a *armedMemory) handOver(ctx context.Context, page uint64) error {
	p := make([]byte, smallPage)
	if _, err := a.m.ReadAt(p, armBase+addr.GPA(page)*smallPage); err != nil {
		return err
	}
	a.mu.Lock()
	a.told[page]++
	a.found[page] = p
	a.mu.Unlock()
	return a.armer.Disarm(a.region, page, 1)
}

func (a *armedMemory) hva(page uint64) addr.HVA {
	return a.region.Slot() + addr.HVA(page)*smallPage
}

// store is what a vCPU does.
func (a *armedMemory) store(page uint64) {
	a.t.Helper()
	done := make(chan error, 1)
	go func() { done <- store(a.hva(page)+8, []byte("written")) }()
	if err := testutil.Proceeds(a.t, done, fmt.Sprintf("store to page %d", page)); err != nil {
		a.t.Fatal(err)
	}
}

// mustBeTold stores to a page, and wants the first of two stores to be told of,
// before it changes what the page holds.
func (a *armedMemory) mustBeTold(page uint64, want []byte) {
	a.t.Helper()
	a.mu.Lock()
	before := a.told[page]
	a.mu.Unlock()
	a.store(page)
	a.store(page)
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.told[page] - before; n != 1 || !bytes.Equal(a.found[page], want) {
		a.t.Errorf("page %d: told %d times, when it held %x..., want once and %x...", page, n, head(a.found[page]), head(want))
	}
}

// leaves is what a step leaves in a page.
type leaves int

const (
	asItWas leaves = iota
	cleared
	written
)

// TestTrap05ArmedThoughNotThere: arming reaches no page that is not there, and an
// install drops it; a page that was armed tells of its first write all the same.
func TestTrap05ArmedThoughNotThere(t *testing.T) { testArmed(t) }

// TestR15ArmedWhateverIsThere: a page that was armed tells of its first write,
// whatever was there when it was armed and whoever brought it since: nobody, a
// vCPU, Go code, the fill, or a removal.
func TestR15ArmedWhateverIsThere(t *testing.T) { testArmed(t) }

func testArmed(t *testing.T) {
	type step struct {
		name  string
		leave leaves
		do    func(a *armedMemory, page uint64)
	}
	at := func(page uint64) addr.GPA { return armBase + addr.GPA(page)*smallPage }
	vcpuReads := func(a *armedMemory, page uint64) {
		if err := testutil.Proceeds(a.t, goLoad(a.hva(page), make([]byte, smallPage)), "load"); err != nil {
			a.t.Fatal(err)
		}
	}
	goReads := func(a *armedMemory, page uint64) {
		if _, err := a.m.ReadAt(make([]byte, smallPage), at(page)); err != nil {
			a.t.Fatal(err)
		}
	}
	discard := func(a *armedMemory, page uint64) {
		if err := a.m.Discard(at(page), smallPage); err != nil {
			a.t.Fatal(err)
		}
	}
	nothing := step{"nothing", asItWas, func(*armedMemory, uint64) {}}
	befores := []step{
		nothing,
		{"a vCPU has read it", asItWas, vcpuReads},
		{"Go code has read it", asItWas, goReads},
		{"a vCPU has written it", written, func(a *armedMemory, page uint64) { a.store(page) }},
		{"it was given back untouched", cleared, discard},
		{"it was given back", cleared, func(a *armedMemory, page uint64) { vcpuReads(a, page); discard(a, page) }},
		{"it was given back and read", cleared, func(a *armedMemory, page uint64) { discard(a, page); vcpuReads(a, page) }},
		{"it was given back and read by Go code", cleared, func(a *armedMemory, page uint64) { discard(a, page); goReads(a, page) }},
	}
	afters := []step{
		nothing,
		{"a vCPU reads it", asItWas, vcpuReads},
		{"Go code reads it", asItWas, goReads},
		{"it is given back", cleared, discard},
		{"it is given back and read", cleared, func(a *armedMemory, page uint64) { discard(a, page); vcpuReads(a, page) }},
		{"it is armed again", asItWas, func(a *armedMemory, page uint64) { must(a.t, a.armer.Arm(a.region, page, 1)) }},
	}
	a := newArmed(t, 0, nil, LeaveRest)
	page := func(i, k, zero int) uint64 {
		return uint64(i*len(afters)+k)*10 + 1 + uint64(zero) // the image is zero at 2, 7, ...
	}
	for i, before := range befores {
		for k := range afters {
			for zero := range 2 {
				before.do(a, page(i, k, zero))
			}
		}
	}
	must(t, a.armer.Arm(a.region, 0, armPages))
	for i, before := range befores {
		for k, after := range afters {
			for zero := range 2 {
				n := page(i, k, zero)
				t.Run(fmt.Sprintf("%s, armed, %s, zero=%d", before.name, after.name, zero), func(t *testing.T) {
					a.t = t
					want := bytes.Clone(savedPage(at(n)))
					if zero == 1 != isZeroPage(at(n)) {
						t.Fatalf("page %d is the wrong one", n)
					}
					for _, l := range []leaves{before.leave, after.leave} {
						switch l {
						case cleared:
							clear(want)
						case written:
							copy(want[8:], "written")
						}
					}
					after.do(a, n)
					a.mustBeTold(n, want)
				})
			}
		}
	}
	a.t = t
	// And again, all of it, in runs.
	for first := uint64(0); first < armPages; first += 256 {
		must(t, a.armer.Arm(a.region, first, 256))
	}
	for i := range befores {
		n := page(i, 0, 0)
		p := make([]byte, smallPage)
		if _, err := a.m.ReadAt(p, at(n)); err != nil {
			t.Fatal(err)
		}
		a.mustBeTold(n, p)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestR15ArmedOnItsWay: a page that is being brought when it is armed is there
// armed: by a fault, by Go code, by the fill.
func TestR15ArmedOnItsWay(t *testing.T) {
	for _, rest := range []Rest{LeaveRest, FillRest} {
		t.Run(fmt.Sprintf("rest=%d", rest), func(t *testing.T) {
			gate := make(chan struct{})
			open := sync.OnceFunc(func() { close(gate) })
			a := newArmed(t, 1000, gate, rest)
			t.Cleanup(open)
			loaded := goLoad(a.hva(1002), make([]byte, smallPage))
			read := make(chan error, 1)
			go func() {
				_, err := a.m.ReadAt(make([]byte, smallPage), armBase+1102*smallPage)
				read <- err
			}()
			pages := a.r.guest.l.regions[0].pages
			eventually(t, "pages to be on their way", func() bool {
				return pages.at(1002)&stateMask == filling && pages.at(1102)&stateMask == filling &&
					(rest == LeaveRest || pages.at(1000)&stateMask == filling)
			})
			must(t, a.armer.Arm(a.region, 0, armPages))
			open()
			if err := testutil.Proceeds(t, loaded, "load"); err != nil {
				t.Error(err)
			}
			if err := testutil.Proceeds(t, read, "read"); err != nil {
				t.Error(err)
			}
			for _, page := range []uint64{1002, 1102, 1000, 1001, 1502} {
				a.mustBeTold(page, savedPage(armBase+addr.GPA(page)*smallPage))
			}
		})
	}
}

// TestR15ArmedInParallel arms the memory from several goroutines while vCPUs read and
// write it and it is filled: each store after an arming has returned is told of.
func TestR15ArmedInParallel(t *testing.T) {
	a := newArmed(t, 0, nil, FillRest)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for th := range 2 {
		readers.Go(func() {
			p := make([]byte, smallPage)
			for i := uint64(th); ; i = (i + 7) % armPages {
				select {
				case <-stop:
					return
				default:
				}
				if err := load(a.hva(i), p); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for round := range uint64(8) {
		var armers sync.WaitGroup
		for k := range uint64(4) {
			armers.Go(func() { must(t, a.armer.Arm(a.region, k*armPages/4, armPages/4)) })
		}
		testutil.Proceeds(t, testutil.Go(armers.Wait), "arming")
		for page := round * 100; page < round*100+12; page++ {
			want := bytes.Clone(savedPage(armBase + addr.GPA(page)*smallPage))
			a.mustBeTold(page, want)
		}
	}
	close(stop)
	testutil.Proceeds(t, testutil.Go(readers.Wait), "readers")
}

// TestR15ArmingWaitsForInstalls is the interleaving of arm.go: an install that has
// seen no mark has ended when arming returns, and its page is armed.
func TestR15ArmingWaitsForInstalls(t *testing.T) {
	s := newTestServer(t, Options{})
	var stop atomic.Bool
	reached, goOn := make(chan struct{}), make(chan struct{})
	resume := sync.OnceFunc(func() { close(goOn) })
	s.hook = func(_ *Guest, p point) {
		if p == pointInstall && stop.CompareAndSwap(true, false) {
			close(reached)
			<-goOn
		}
	}
	a := newArmedOn(t, s, 0, nil, LeaveRest)
	t.Cleanup(resume)
	stop.Store(true)
	loaded := goLoad(a.hva(5), make([]byte, smallPage))
	testutil.Proceeds(t, reached, "install")
	done := testutil.Go(func() {
		if err := a.armer.Arm(a.region, 0, armPages); err != nil {
			t.Error(err)
		}
	})
	testutil.Parked(t, done, "arming beside an install")
	resume()
	testutil.Proceeds(t, done, "arming")
	if err := testutil.Proceeds(t, loaded, "load"); err != nil {
		t.Error(err)
	}
	a.mustBeTold(5, savedPage(armBase+5*smallPage))
}
