package pager

import (
	"bytes"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/internal/testutil"
)

// A gatedSource holds reads of one range up.
type gatedSource struct {
	Source
	from, to uint64
	reached  chan struct{}
	gate     chan struct{}
	once     sync.Once
}

func (s *gatedSource) ReadPages(ctx context.Context, p []byte, off uint64) error {
	if off < s.to && off+uint64(len(p)) > s.from {
		s.once.Do(func() { close(s.reached) })
		select {
		case <-s.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Source.ReadPages(ctx, p, off)
}

// TestReplayHoldsNoFaultUp: while the first run of a replay is being read, and never
// comes, all pages but its own are served at once: those of later runs too.
func TestReplayHoldsNoFaultUp(t *testing.T) {
	img := twoRegions(512)
	path := save(t, img, snapfile.Options{})
	f := openSaved(t, path)
	ram := img.regions[0].Base
	first := uint64(ram) / smallPage
	source, err := newFileSource(f)
	must(t, err)
	set := &WorkingSet{Image: Identity(f.ID()), Pages: source.Size() / smallPage, Runs: []PageRun{{first, 512}}}
	must(t, saveWorkingSet(path+WorkingSetSuffix, set))
	gated := &gatedSource{from: uint64(ram), to: uint64(ram) + runBytes, reached: make(chan struct{}), gate: make(chan struct{})}
	open := sync.OnceFunc(func() { close(gated.gate) })
	m := newMemory(t)
	t.Cleanup(open)
	r := startRestore(t, m, f, RestoreOptions{Parallel: 1, wrap: func(s Source) Source { gated.Source = s; return gated }})
	testutil.Proceeds(t, gated.reached, "replay")
	testutil.Proceeds(t, testutil.Go(func() {
		p := make([]byte, smallPage)
		for at := ram + windowPages*smallPage; at < ram+512*smallPage; at += 3 * smallPage {
			if err := load(slotAt(m, at), p); err != nil || !bytes.Equal(p, savedPage(at)) {
				t.Errorf("page at %v: %v, %x...", at, err, head(p))
			}
		}
		if _, err := m.ReadAt(p, ram+windowPages*smallPage); err != nil {
			t.Error(err)
		}
	}), "guest beside the replay")
	p := make([]byte, smallPage)
	mine := goLoad(slotAt(m, ram), p)
	testutil.Parked(t, mine, "load of a page that is being replayed")
	open()
	if err := testutil.Proceeds(t, mine, "load of a page that was being replayed"); err != nil || !bytes.Equal(p, savedPage(ram)) {
		t.Errorf("%v, %x...", err, head(p))
	}
	if r.Replayed() != 512 {
		t.Errorf("%d pages replayed", r.Replayed())
	}
	waitRestored(t, r)
}

// TestReplayGivesWay: between two runs others get the processor that a replay is
// on, when there is no other, though nothing that it does ever waits.
func TestReplayGivesWay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const n = 1 << 14
	var reads, soon atomic.Int64
	var others sync.WaitGroup
	src := &testSource{size: n * smallPage, read: func(context.Context, uint64, int) error {
		if began := reads.Add(1); began%8 == 0 {
			others.Go(func() { // such as a reader that has been woken
				if reads.Load() < began+6 {
					soon.Add(1)
				}
			})
		}
		return nil
	}}
	set := &WorkingSet{Pages: n, Runs: []PageRun{{0, n}}}
	g := serveFake(t, newTestServer(t, Options{SpinFor: -1}), newFake(t), GuestOptions{Source: src, Fill: Fill{Replay: set, Parallel: 1, Background: FillAll}})
	testutil.Proceeds(t, g.Done(), "end of the replay")
	others.Wait()
	// Not each: the runtime has goroutines of its own, and lets them in first.
	if all := reads.Load() / 8; all < 8 || soon.Load() < all/2 {
		t.Errorf("beside %d runs, of %d that could run no more than %d did before 6 more", reads.Load(), all, soon.Load())
	}
}

// TestWorkingSetIsNoFile: what is in a set's place may be anything, and neither
// holds a restore up nor fails it.
func TestWorkingSetIsNoFile(t *testing.T) {
	img := twoRegions(64)
	for name, make := range map[string]func(string) error{
		"a pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a directory": func(p string) error { return unix.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			path := save(t, img, snapfile.Options{})
			must(t, make(path+WorkingSetSuffix))
			m := newMemory(t)
			r := startRestore(t, m, openSaved(t, path), RestoreOptions{RecordFor: -1, WorkingSets: ReplayOnly})
			if err := r.WorkingSetErr(); !isAny(err, ErrWorkingSet) {
				t.Error(err)
			}
			wantAll(t, m, img)
			waitRestored(t, r)
		})
	}
}
