package pager

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// An ending is a way in which what serves a restore ends before its time.
type ending struct {
	name string
	o    RestoreOptions
	end  func(e *ended)
	why  []error // of which each access that needs what is missing has one
	// waits: who faults waits until Restore.Close.
	waits bool
	// later: it may end after end has returned, so that a store is told meanwhile.
	later bool
}

// ended is a restore that ends while a snapshot is open, and a clone of that.
type ended struct {
	t      *testing.T
	m      *guestmem.Memory
	r      *Restore
	server *Server
	base   addr.GPA
	broken atomic.Bool // the source is
	kill   atomic.Bool // the next goroutine that reads events is to end
}

const (
	endedPages = 128
	cameFirst  = 16 // pages that were touched before the snapshot
)

func endings() []ending {
	return []ending{
		{name: "closed", end: func(e *ended) { e.r.Close() }, why: []error{ErrClosed}},
		{name: "closed beside its users", end: func(e *ended) { go e.r.Close(); <-e.r.guest.ctx.Done() }, why: []error{ErrClosed}, later: true},
		{name: "server closed", end: func(e *ended) { e.server.Close() }, why: []error{ErrServerClosed}},
		{name: "server closed, parked", o: RestoreOptions{OnFailure: Park}, end: func(e *ended) { e.server.Close() }, why: []error{ErrServerClosed}, waits: true},
		{name: "file unreadable", end: func(e *ended) {
			e.broken.Store(true)
			_, _ = e.m.ReadAt(make([]byte, 8), e.base+(endedPages-1)*smallPage)
		}, why: []error{unix.EIO}, later: true},
		{name: "reader panics", end: func(e *ended) {
			e.kill.Store(true)
			go func() { _ = load(slotAt(e.m, e.base+(endedPages-1)*smallPage), make([]byte, 8)) }()
		}, why: []error{ErrPanicked}, later: true},
	}
}

// R12: what serves a restore ends while a snapshot is open, and a clone of it runs:
// whatever can be read of either is what memory held at the instant, what cannot is
// an error with a name, nobody stores to what is not armed any more, and in whatever
// order they are closed then, nobody waits and nothing is left.
func TestR12PagerEndsWhileASnapshotIsOpen(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	for _, how := range endings() {
		for _, order := range []string{"snapshot first", "restore first", "memory first"} {
			t.Run(how.name+", "+order, func(t *testing.T) {
				testutil.Within(t, within, func() { endRestore(t, how, order) })
			})
		}
	}
}

func endRestore(t *testing.T, how ending, order string) {
	e := &ended{t: t}
	img := savedImage{[]snapfile.Region{
		{Name: "ram", Base: 1 << 20, Size: endedPages * smallPage, PageSize: smallPage},
		{Name: "rom", Base: 1 << 32, Size: 32 * smallPage, PageSize: smallPage, ReadOnly: true},
	}}
	e.base = img.regions[0].Base
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	must(t, err)
	e.m = m
	e.server = NewServer(Options{})
	defer e.server.Close()
	e.server.hook = func(_ *Guest, p point) {
		if p == pointMarked && e.kill.CompareAndSwap(true, false) {
			panic("killed")
		}
	}
	o := how.o
	o.Server, o.Rest, o.WorkingSets = e.server, LeaveRest, NoWorkingSet
	o.Retry = Retry{Attempts: 1}
	failed := make(chan error, 1)
	if o.OnFailure == FailGuest {
		o.Fail = func(err error) { failed <- err }
	}
	o.wrap = func(s Source) Source { return breakable{s, &e.broken} }
	e.r, err = StartRestore(context.Background(), m, openSaved(t, save(t, img, snapfile.Options{})), o)
	must(t, err)

	want := make([]byte, endedPages*smallPage)
	for i := range addr.GPA(endedPages) {
		copy(want[i*smallPage:], savedPage(e.base+i*smallPage))
	}
	for i := range addr.GPA(cameFirst) {
		loadPage(t, slotAt(m, e.base+i*smallPage), want[i*smallPage:(i+1)*smallPage])
	}
	must(t, store(slotAt(m, e.base+1*smallPage), []byte("before")))
	copy(want[1*smallPage:], "before")
	s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{Sweep: guestmem.SweepOnDemand})
	must(t, err)
	told := make(chan error, 1)
	clone, err := s.Clone(context.Background(), guestmem.CloneOptions{OnFailure: func(err error) { told <- err }})
	must(t, err)
	for _, page := range []addr.GPA{2, 3, cameFirst + 1} { // the last one is brought for it
		must(t, store(slotAt(m, e.base+page*smallPage), []byte("after")))
	}
	if _, err := m.WriteAt([]byte("after"), e.base+4*smallPage); err != nil {
		t.Fatal(err)
	}

	// Who stores to a page that is armed, all the while.
	stored := make(chan error, 1)
	how.end(e)
	go func() { stored <- store(slotAt(m, e.base+5*smallPage), []byte("untold")) }()
	if how.o.OnFailure == FailGuest && how.why[0] != ErrClosed {
		if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, how.why[0]) {
			t.Errorf("the owner is told %v, want %v", err, how.why[0])
		}
		if err := store(slotAt(m, e.base+7*smallPage), []byte("untold")); !errors.Is(err, unix.EFAULT) {
			t.Errorf("a store after Fail: %v, want EFAULT", err)
		}
	}
	named := func(what string, err error) {
		t.Helper()
		for _, why := range how.why {
			if errors.Is(err, why) {
				return
			}
		}
		t.Errorf("%s: %v, want %v", what, err, how.why)
	}
	holds := func(what string, read func([]byte, addr.GPA) (int, error)) {
		t.Helper()
		p := make([]byte, smallPage)
		for i := range addr.GPA(endedPages) {
			_, err := read(p, e.base+i*smallPage)
			switch {
			case err == nil && !bytes.Equal(p, want[i*smallPage:(i+1)*smallPage]):
				t.Errorf("%s: page %d holds %x..., want %x...", what, i, head(p), head(want[i*smallPage:]))
			case err != nil && i <= 4:
				t.Errorf("%s: page %d was there: %v", what, i, err)
			case err != nil:
				named(what, err)
			}
		}
	}
	holds("the snapshot", s.ReadAt)
	if _, err := m.WriteAt([]byte("by Go"), e.base+6*smallPage); err != nil {
		named("a store by Go code to a page that is there", err)
	}
	_, err = m.WriteAt([]byte("by Go"), e.base+100*smallPage)
	named("a store by Go code to a page that is not", err)
	holds("the snapshot, after stores", s.ReadAt)
	named("Sweep", s.Sweep(context.Background()))
	testutil.Proceeds(t, s.Done(), "end of the snapshot")
	named("Snapshot.Err", s.Err())
	named("OnFailure", testutil.Proceeds(t, told, "OnFailure"))
	_, err = clone.ReadAt(make([]byte, 8), e.base+100*smallPage)
	named("a read of the clone", err)
	p := make([]byte, 8)
	if _, err := clone.ReadAt(p, e.base+2*smallPage); err != nil || !bytes.Equal(p, want[2*smallPage:][:8]) {
		t.Errorf("what the clone has: %x, %v", p, err)
	}
	// What is begun now fails by name, or has what was there.
	if s2, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{}); err == nil {
		testutil.Proceeds(t, s2.Done(), "end of the second snapshot")
		named("the second snapshot", s2.Err())
		must(t, s2.Close())
	} else if !errors.Is(err, ErrClosed) { // it ends in the middle of the arming
		named("Snapshot", err)
	}
	if fork, err := clone.Fork(context.Background(), guestmem.ForkOptions{}); err == nil {
		_, err = fork.ReadAt(make([]byte, 8), e.base+100*smallPage)
		named("a read of a fork of the clone", err)
		must(t, fork.Close())
	} else {
		named("Fork", err)
	}
	closeAll := map[string]func(){
		"snapshot": func() { must(t, errors.Join(clone.Close(), s.Close())) },
		"restore":  func() { must(t, e.r.Close()) },
		"memory":   func() { must(t, m.Close()) },
	}
	first := map[string][]string{
		"snapshot first": {"snapshot", "restore", "memory"},
		"restore first":  {"restore", "snapshot", "memory"},
		"memory first":   {"snapshot", "memory", "restore"},
	}[order]
	if how.waits { // nobody is to serve it any more, and says so by Close
		first = []string{"restore", "snapshot", "memory"}
	}
	for _, what := range first {
		closeAll[what]()
	}
	if err := testutil.Proceeds(t, stored, "a store to what was armed"); !errors.Is(err, unix.EFAULT) && !(how.later && err == nil) {
		t.Errorf("a store to what is armed no more: %v, want EFAULT", err)
	}
	runtime.KeepAlive(e)
}

// R12: a restore that fails takes nothing away but its own memory: where a region was
// removed, somebody else's may be.
func TestR12FailedRestoreBarsItsOwnMemory(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	img := twoRegions(64)
	m := newMemory(t)
	var broken atomic.Bool
	failed := make(chan error, 1)
	r := startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{
		Rest: LeaveRest, WorkingSets: NoWorkingSet, Fail: func(err error) { failed <- err },
		wrap: func(s Source) Source { return breakable{s, &broken} },
	})
	ram, _ := m.RegionAt(img.regions[0].Base)
	at, size := uintptr(ram.Slot()), uintptr(ram.Size())
	must(t, m.RemoveRegion(ram))
	got, _, errno := unix.Syscall6(unix.SYS_MMAP, at, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if errno != 0 || got != at {
		t.Skipf("nothing else could be mapped where the region was: %v", errno)
	}
	defer unix.Syscall(unix.SYS_MUNMAP, at, size, 0)
	broken.Store(true)
	if _, err := m.ReadAt(make([]byte, 8), img.regions[1].Base); !errors.Is(err, unix.EIO) {
		t.Errorf("a read of what cannot be had: %v", err)
	}
	testutil.Proceeds(t, failed, "Fail")
	if err := store(addr.HVA(at), []byte("somebody else's")); err != nil {
		t.Errorf("somebody else's memory: %v", err)
	}
	rom, _ := m.RegionAt(img.regions[1].Base)
	if err := load(rom.Slot(), make([]byte, 8)); !errors.Is(err, unix.EFAULT) {
		t.Errorf("the restore's own: %v", err)
	}
	must(t, m.RemoveRegion(rom)) // nobody reads events any more, and nobody waits for that
	must(t, r.Close())
}

// breakable is a source that can be broken.
type breakable struct {
	Source
	broken *atomic.Bool
}

func (b breakable) ReadPages(ctx context.Context, p []byte, off uint64) error {
	if b.broken.Load() {
		return unix.EIO
	}
	return b.Source.ReadPages(ctx, p, off)
}
