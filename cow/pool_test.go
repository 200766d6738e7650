package cow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestPoolHandsOutAscendingThenLastInFirstOut(t *testing.T) {
	p, h := newPool(t, 64, Options{GrowFrames: 16, KeepFree: 64})
	var c Cache
	var got []addr.PFN
	for len(got) < 40 {
		f, _, ok := p.Take(&c)
		if !ok {
			if err := p.Refill(&c); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got = append(got, f)
	}
	p.Empty(&c)
	// Neighbours in memory for neighbours in an address space, as far as the
	// frames of one refill go.
	step := min(refillSize(), 16)
	for i := 0; i+step <= len(got); i += step {
		if !slices.IsSorted(got[i : i+step]) {
			t.Errorf("frames of one refill are %v", got[i:i+step])
		}
	}
	for _, f := range got {
		if !h.isBacked(f) || p.Of(f) != 1 {
			t.Errorf("frame %v: backed %v, count %d", f, h.isBacked(f), p.Of(f))
		}
	}
	for i, r := range h.populate {
		if want := (run{firstFrame + addr.PFN(i)*16, 16}); r != want {
			t.Errorf("populated %v, want %v", r, want)
		}
	}
	p.DropData(got)

	f := mustAlloc(t, p, 3)
	for _, x := range f {
		p.Drop(x)
		p.FreeData(x)
	}
	for i := len(f) - 1; i >= 0; i-- {
		if again := mustAlloc(t, p, 1)[0]; again != f[i] {
			t.Errorf("got %v, want %v, which was freed last", again, f[i])
		}
	}
	p.DropData(f)
}

func TestPoolNeverHandsOutWhatIsSkipped(t *testing.T) {
	for _, skip := range []uint64{0, 1, 7, 8, 9} {
		h := newHost(t, 8)
		p := NewPool(h.a, h, skip, Options{GrowFrames: 3})
		n := 8 - min(skip, 8)
		if free, unused := p.FreeFrames(); free != 0 || unused != n {
			t.Errorf("skip %d: %d and %d frames free, want 0 and %d", skip, free, unused, n)
		}
		for range n {
			if f := mustAlloc(t, p, 1)[0]; uint64(f-firstFrame) < skip {
				t.Errorf("skip %d: got frame %v", skip, f)
			}
		}
		if err := p.Alloc(make([]addr.PFN, 1)); !errors.Is(err, ErrNoMemory) {
			t.Errorf("skip %d: one more: %v", skip, err)
		}
	}
}

// A frame that is said to be zero is: fresh ones are, used ones are not, and
// those that came back from the host are again.
func TestPoolKnowsZeroFrames(t *testing.T) {
	p, h := newPool(t, 32, Options{GrowFrames: 4, KeepFree: 4})
	var c Cache
	take := func() (addr.PFN, bool) {
		t.Helper()
		f, zero, ok := p.Take(&c)
		for !ok {
			if err := p.Refill(&c); err != nil {
				t.Fatal(err)
			}
			f, zero, ok = p.Take(&c)
		}
		if zero && !h.isZero(f) {
			t.Fatalf("frame %v is said to be zero, and is not", f)
		}
		return f, zero
	}
	var taken []addr.PFN
	for range 32 {
		f, zero := take()
		if !zero {
			t.Errorf("frame %v is fresh, and not known to be zero", f)
		}
		h.spoil(f)
		taken = append(taken, f)
	}
	p.DropData(taken) // trims down to 4 on the way
	known := 0
	for range 32 {
		f, zero := take()
		if zero {
			known++
		}
		h.spoil(f)
	}
	if known == 0 || known == 32 {
		t.Errorf("%d frames of 32 are known to be zero after some were given back", known)
	}
	f := taken[0]
	p.Return(&c, f, false)
	if got, zero, ok := p.Take(&c); got != f || zero || !ok {
		t.Errorf("a frame that was put back: %v, zero %v, %v", got, zero, ok)
	}
	h.a.Zero(f)
	p.Return(&c, f, true)
	if got, zero, ok := p.Take(&c); got != f || !zero || !ok {
		t.Errorf("a frame that was put back zeroed: %v, zero %v, %v", got, zero, ok)
	}
	p.DropData(taken)
	p.Empty(&c)
}

// Everybody takes and returns at once; nobody ever has a frame that somebody
// else has. Each owner writes its mark into the frame, for the race detector
// too.
func TestPoolNeverHandsOutAFrameTwice(t *testing.T) {
	const workers, nFrames = 4, 256
	p, h := newPool(t, nFrames, Options{GrowFrames: 8, KeepFree: 32})
	var calls atomic.Int64
	h.fails = func(call int, _ bool, n uint64) error {
		if calls.Add(1)%7 == 0 && n > 1 {
			return syscall.ENOMEM // now and then, for the ways back
		}
		return nil
	}
	owner := make([]atomic.Int32, nFrames)
	var wg sync.WaitGroup
	for w := range int32(workers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(w)))
			var c Cache
			var mine []addr.PFN
			got := func(f addr.PFN) {
				if was := owner[f-firstFrame].Swap(w + 1); was != 0 {
					t.Errorf("frame %v is handed to %d, and %d has it", f, w+1, was)
				}
				h.a.Bytes(f)[0] = byte(w)
				mine = append(mine, f)
			}
			for range 2000 {
				switch k := rng.IntN(6); {
				case k < 2:
					f, zero, ok := p.Take(&c)
					if !ok {
						if err := p.Refill(&c); err != nil && !errors.Is(err, ErrNoMemory) {
							t.Error(err)
						}
						continue
					}
					if zero && !h.isZero(f) {
						t.Errorf("frame %v is said to be zero, and is not", f)
					}
					if rng.IntN(4) == 0 {
						p.Return(&c, f, zero)
						continue
					}
					got(f)
				case k == 2:
					out := make([]addr.PFN, 1+rng.IntN(20))
					if p.Alloc(out) == nil {
						for _, f := range out {
							got(f)
						}
					}
				case k == 3 && rng.IntN(10) == 0:
					p.Empty(&c)
				default:
					n := min(len(mine), rng.IntN(12))
					for _, f := range mine[len(mine)-n:] {
						owner[f-firstFrame].Store(0)
					}
					p.DropData(mine[len(mine)-n:])
					mine = mine[:len(mine)-n]
				}
			}
			for _, f := range mine {
				owner[f-firstFrame].Store(0)
			}
			p.DropData(mine)
			p.Empty(&c)
		})
	}
	wg.Wait()
}

// The n-th call of the host's fails, for every n: the caller is told why, in
// both languages, and no frame is lost.
func TestPoolLosesNothingWhenTheHostFails(t *testing.T) {
	for n := 1; ; n++ {
		p, h := newPool(t, 64, Options{GrowFrames: 4, KeepFree: 8})
		failed := 0
		h.fails = func(call int, populate bool, _ uint64) error {
			// The call, and the one-frame try after it.
			if call == n || call == n+1 {
				failed++
				return syscall.EDQUOT
			}
			return nil
		}
		errs := 0
		var held []addr.PFN
		for _, k := range []int{3, 9, 1, 20} {
			out := make([]addr.PFN, k)
			switch err := p.Alloc(out); {
			case err == nil:
				held = append(held, out...)
			case !errors.Is(err, syscall.ENOMEM), !errors.Is(err, ErrNoMemory), !errors.Is(err, syscall.EDQUOT):
				t.Fatalf("call %d fails: Alloc: %v, which is not both the pool's error and the host's", n, err)
			default:
				errs++
			}
		}
		p.DropData(held)
		mustHaveAll(t, p, h)
		if failed == 0 {
			if n < 8 {
				t.Errorf("only %d calls were made to fail", n-1)
			}
			return
		}
	}
}

// With no frame left it is the pool's own error.
func TestPoolRunsOut(t *testing.T) {
	p, _ := newPool(t, 10, Options{GrowFrames: 4})
	all := mustAlloc(t, p, 10)
	err := p.Alloc(make([]addr.PFN, 1))
	if !errors.Is(err, ErrNoMemory) || !errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN) {
		t.Errorf("Alloc of one too many: %v", err)
	}
	p.DropData(all[:5])
	if err := p.Alloc(make([]addr.PFN, 6)); !errors.Is(err, ErrNoMemory) {
		t.Errorf("Alloc of one too many: %v", err)
	}
	var c Cache
	if err := p.Refill(&c); err != nil {
		t.Errorf("after an Alloc that took all or nothing: Refill: %v", err)
	}
	p.Empty(&c)
	p.DropData(all[5:])
}

// Where the host has not enough for a batch, the last frames are had one by one.
func TestPoolTakesTheLastFramesSingly(t *testing.T) {
	p, h := newPool(t, 16, Options{GrowFrames: 8})
	left := uint64(5)
	h.fails = func(_ int, populate bool, n uint64) error {
		if populate {
			if n > left {
				return syscall.ENOSPC
			}
			left -= n
		}
		return nil
	}
	held := mustAlloc(t, p, 5)
	err := p.Alloc(make([]addr.PFN, 1))
	if !errors.Is(err, syscall.ENOMEM) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("one more: %v", err)
	}
	if free, unused := p.FreeFrames(); free != 0 || unused != 11 {
		t.Errorf("%d and %d frames free, want 0 and 11", free, unused)
	}
	left = 100
	held = append(held, mustAlloc(t, p, 11)...)
	p.DropData(held)
}

// Somebody populates the last frames, or gives frames back; who finds the lists
// empty meanwhile waits for that, and is not told that memory is used up.
//
//	A                          B
//	takes the last run
//	populates it ...           lists are empty: ErrNoMemory?
//	... puts it on the list
func TestPoolWaitsForFramesThatAreAway(t *testing.T) {
	for _, populating := range []bool{true, false} {
		t.Run(fmt.Sprintf("populating=%v", populating), func(t *testing.T) {
			p, h := newPool(t, 8, Options{GrowFrames: 8})
			inCall, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			h.during = func(populate bool) {
				if populate == populating {
					once.Do(func() { close(inCall); <-goOn })
				}
			}
			var first []addr.PFN
			p.trimFrom = 7 // so that freeing all gives back
			a := testutil.Go(func() {
				if populating {
					first = mustAlloc(t, p, 2) // of the 8 that are populated at once
					return
				}
				p.DropData(mustAlloc(t, p, 8))
			})
			testutil.Proceeds(t, inCall, "the first")
			var second []addr.PFN
			b := testutil.Go(func() {
				out := make([]addr.PFN, 1)
				if err := p.Alloc(out); err != nil {
					t.Errorf("Alloc beside it: %v", err)
					return
				}
				second = out
			})
			testutil.Parked(t, b, "the second")
			close(goOn)
			testutil.Proceeds(t, a, "the first")
			testutil.Proceeds(t, b, "the second")
			p.DropData(append(first, second...))
		})
	}
}

// What is free above KeepFree goes back to the host, in runs as long as
// possible, and the runs join up again.
func TestPoolGivesBackInRuns(t *testing.T) {
	const n = 64
	p, h := newPool(t, n, Options{GrowFrames: 8, KeepFree: 16})
	all := mustAlloc(t, p, n)
	rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, f := range all {
		p.Drop(f)
		p.FreeData(f)
		if free, _ := p.FreeFrames(); free > 16+8 {
			t.Fatalf("%d frames are kept free", free)
		}
	}
	free, unused := p.FreeFrames()
	if free < 16 || free+unused != n {
		t.Errorf("%d and %d frames free", free, unused)
	}
	if uint64(len(h.given)) == unused {
		t.Error("every frame went back by a call of its own")
	}
	// All of it goes back when nothing is to be kept, and is one run again.
	p.opts.KeepFree, p.trimFrom = 0, 0
	p.DropData(mustAlloc(t, p, 1))
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.runs) != 1 || p.runs[0] != (run{firstFrame, n}) {
		t.Errorf("runs %v, want one", p.runs)
	}
}

func TestMergeRuns(t *testing.T) {
	for range 200 {
		var a, b []freeFrame
		want := make(map[addr.PFN]bool)
		for f := range addr.PFN(40) {
			switch rand.IntN(3) {
			case 0:
				a = append(a, makeFree(f, false))
				want[f] = true
			case 1:
				b = append(b, makeFree(f, true))
				want[f] = true
			}
		}
		got := mergeRuns(runsOf(a), runsOf(b))
		end := addr.PFN(1 << 20)
		for _, r := range got {
			if r.first+addr.PFN(r.n) >= end || r.n == 0 {
				t.Fatalf("runs %v are not apart, highest first", got)
			}
			end = r.first
			for i := range addr.PFN(r.n) {
				if !want[r.first+i] {
					t.Fatalf("frame %v is in %v, and should not be, or twice", r.first+i, got)
				}
				delete(want, r.first+i)
			}
		}
		if len(want) != 0 {
			t.Fatalf("frames %v are missing in %v", want, got)
		}
	}
}

// A host that takes nothing back: the frames stay, and it is not asked at every
// free.
func TestPoolKeepsWhatTheHostDoesNotTake(t *testing.T) {
	const n = 512
	p, h := newPool(t, n, Options{GrowFrames: 16, KeepFree: 16})
	h.fails = func(_ int, populate bool, _ uint64) error {
		if !populate {
			return syscall.EOPNOTSUPP
		}
		return nil
	}
	all := mustAlloc(t, p, n)
	h.calls = 0
	for _, f := range all {
		p.Drop(f)
		p.FreeData(f)
	}
	if free, unused := p.FreeFrames(); free != n || unused != 0 {
		t.Errorf("%d and %d frames free, want %d and 0", free, unused, n)
	}
	if h.calls > n/16 {
		t.Errorf("the host was asked %d times for %d frames", h.calls, n)
	}
	// It takes some of them later.
	h.fails = nil
	p.trimFrom = 0
	p.DropData(mustAlloc(t, p, 1))
	if free, unused := p.FreeFrames(); free != 16 || unused != n-16 {
		t.Errorf("%d and %d frames free, want 16 and %d", free, unused, n-16)
	}
}

func TestFreeTablesGoWhereTheyShould(t *testing.T) {
	p, _ := newPool(t, 8, Options{GrowFrames: 8, KeepFree: 8})
	f := mustAlloc(t, p, 2)
	p.Drop(f[0])
	p.FreeTable(f[0])
	var quarantine []addr.PFN
	p.OnFreeTable(func(f addr.PFN) { quarantine = append(quarantine, f) })
	p.Drop(f[1])
	p.FreeTable(f[1])
	if !slices.Equal(quarantine, f[1:]) {
		t.Errorf("a view has %v, want %v", quarantine, f[1:])
	}
	p.FreeData(f[1])
}

func TestFreeFramesArePoisoned(t *testing.T) {
	p, h := newPool(t, 8, Options{GrowFrames: 8, KeepFree: 8})
	f := mustAlloc(t, p, 1)[0]
	h.a.Bytes(f)[100] = 7
	if invariants.Enabled {
		testutil.Panics(t, "FreeData of a frame with references", func() { p.FreeData(f) })
	}
	p.Drop(f)
	p.FreeData(f)
	for i, b := range h.a.Bytes(f) {
		want := byte(0)
		switch {
		case invariants.Enabled:
			want = poison
		case i == 100:
			want = 7
		}
		if b != want {
			t.Fatalf("byte %d of a free frame is %#x, want %#x", i, b, want)
		}
	}
}

// Taking and returning on the way of every fault allocates nothing.
func TestTakeAllocatesNothing(t *testing.T) {
	p, _ := newPool(t, 256, Options{GrowFrames: 64, KeepFree: 256})
	var c Cache
	if err := p.Refill(&c); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		f, zero, _ := p.Take(&c)
		p.Share([]addr.PFN{f})
		p.Drop(f)
		p.Return(&c, f, zero)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	frames := mustAlloc(t, p, 100)
	one := frames[:1]
	if n := testing.AllocsPerRun(100, func() {
		p.Share(one)
		p.DropData(one)
	}); n != 0 {
		t.Errorf("DropData: %v allocations", n)
	}
	p.DropData(frames)
	p.Empty(&c)
}

func BenchmarkDropData(b *testing.B) {
	const n = 512
	h := &noHost{}
	p := NewPool(arena.New(make([]byte, n*page), firstFrame), h, 0, Options{GrowFrames: n, KeepFree: n})
	frames := mustAlloc(b, p, n)
	for _, batch := range []int{1, n} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for i := 0; i < n; i += batch {
					p.DropData(frames[i : i+batch])
				}
				b.StopTimer()
				frames = mustAlloc(b, p, n)
				b.StartTimer()
			}
		})
	}
}

type noHost struct{}

func (noHost) Populate(addr.PFN, uint64) error { return nil }
func (noHost) GiveBack(addr.PFN, uint64) error { return nil }
