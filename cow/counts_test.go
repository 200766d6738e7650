package cow

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestCounts(t *testing.T) {
	c := newCounts(firstFrame, 7)
	f := firstFrame + 2
	c.begin(f)
	c.Share([]addr.PFN{f, f, firstFrame + 3})
	if c.Of(f) != 3 || c.Of(f+1) != 1 || c.Of(f-1) != 0 {
		t.Errorf("counts %d, %d, %d; want 3, 1, 0", c.Of(f), c.Of(f+1), c.Of(f-1))
	}
	if c.Drop(f) || c.Exclusive(f) || c.Drop(f) || !c.Exclusive(f) || !c.Drop(f) || c.Live(f) {
		t.Error("three drops")
	}
	if c.Exclusive(f) {
		t.Error("a frame without references is exclusive")
	}
	for _, out := range []addr.PFN{0, firstFrame - 1, firstFrame + 7, ^addr.PFN(0)} {
		if c.Live(out) {
			t.Errorf("frame %v, which is outside, is live", out)
		}
	}
}

func TestCountDroppedOnceTooOftenPanics(t *testing.T) {
	for lane := range addr.PFN(lanes) {
		c := newCounts(firstFrame, lanes)
		testutil.Panics(t, "Drop of a free frame", func() { c.Drop(firstFrame + lane) })
		c = newCounts(firstFrame, lanes)
		c.begin(firstFrame + lane)
		testutil.Panics(t, "dropEach of a frame twice", func() {
			c.dropEach([]addr.PFN{firstFrame + lane, firstFrame + lane}, nil)
		})
		c = newCounts(firstFrame, lanes)
		c.begin(firstFrame + lane)
		c.Pin(firstFrame + lane)
		c.Unpin(firstFrame + lane)
		c.Drop(firstFrame + lane)
		testutil.Panics(t, "Unpin of a free frame", func() { c.Unpin(firstFrame + lane) })
	}
	if invariants.Enabled {
		c := newCounts(firstFrame, lanes)
		c.begin(firstFrame)
		testutil.Panics(t, "a free frame with references", func() { c.begin(firstFrame) })
	}
}

// A frame and its pin are one owner; a third reference makes it shared.
func TestR7PinsDoNotMakeShared(t *testing.T) {
	c := newCounts(firstFrame, 200)
	for _, f := range []addr.PFN{firstFrame, firstFrame + 63, firstFrame + 64, firstFrame + 199} {
		c.begin(f)
		c.Pin(f)
		if !c.IsPinned(f) || c.Of(f) != 2 || !c.Exclusive(f) {
			t.Errorf("%v pinned: count %d, exclusive %v", f, c.Of(f), c.Exclusive(f))
		}
		c.Share([]addr.PFN{f})
		if c.Exclusive(f) {
			t.Errorf("%v, pinned and shared, is exclusive", f)
		}
		c.Drop(f)
		if c.Drop(f) || !c.Live(f) || !c.IsPinned(f) {
			t.Errorf("%v: the pin does not hold it", f)
		}
		if !c.Unpin(f) || c.IsPinned(f) || c.Live(f) {
			t.Errorf("%v: unpinning was not the last", f)
		}
	}
	// Two references without a pin are shared, whatever the neighbours' marks.
	f := firstFrame + 10
	c.begin(f)
	c.begin(f + 1)
	c.Pin(f + 1)
	c.Share([]addr.PFN{f})
	if c.Exclusive(f) || !c.Exclusive(f+1) {
		t.Error("a pin counts for its neighbour")
	}
}

// Shares and drops in every grouping, of more references than a lane holds,
// agree with a plain map.
func TestR6CountsAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const n = 11
		c := newCounts(firstFrame, n)
		want := make(map[addr.PFN]uint32)
		frame := rapid.Custom(func(t *rapid.T) addr.PFN {
			return firstFrame + addr.PFN(rapid.IntRange(0, n-1).Draw(t, "frame"))
		})
		frames := rapid.OneOf(
			rapid.SliceOfN(frame, 1, 20),
			rapid.Custom(func(t *rapid.T) []addr.PFN { // neighbours
				from := rapid.IntRange(0, n-1).Draw(t, "from")
				to := rapid.IntRange(from+1, n).Draw(t, "to")
				var fs []addr.PFN
				for i := from; i < to; i++ {
					fs = append(fs, firstFrame+addr.PFN(i))
				}
				return fs
			}),
		)
		rt.Repeat(map[string]func(*rapid.T){
			"share": func(t *rapid.T) {
				fs := frames.Draw(t, "frames")
				for range rapid.SampledFrom([]int{1, 1, 1, int(spillAt())}).Draw(t, "times") {
					c.Share(fs)
					for _, f := range fs {
						want[f]++
					}
				}
			},
			"drop": func(t *rapid.T) {
				f := frame.Draw(t, "frame")
				if want[f] == 0 {
					t.Skip("free")
				}
				want[f]--
				if c.Drop(f) != (want[f] == 0) {
					t.Fatalf("Drop with %d left", want[f])
				}
			},
			"drop each": func(t *rapid.T) {
				var fs, last []addr.PFN
				for _, f := range frames.Draw(t, "frames") {
					if want[f] == 0 {
						continue
					}
					if want[f]--; want[f] == 0 {
						last = append(last, f)
					}
					fs = append(fs, f)
				}
				got := c.dropEach(fs, nil)
				if len(got) != len(last) {
					t.Fatalf("dropEach(%v) freed %v, want %v", fs, got, last)
				}
				for i := range got {
					if got[i] != last[i] {
						t.Fatalf("dropEach(%v) freed %v, want %v", fs, got, last)
					}
				}
			},
			"drop all but few": func(t *rapid.T) {
				f := frame.Draw(t, "frame")
				for left := uint32(rapid.IntRange(0, 3).Draw(t, "left")); want[f] > left; {
					want[f]--
					if c.Drop(f) != (want[f] == 0) {
						t.Fatalf("Drop with %d left", want[f])
					}
				}
			},
			"": func(t *rapid.T) {
				for i := range addr.PFN(n) {
					f := firstFrame + i
					if c.Of(f) != want[f] || c.Exclusive(f) != (want[f] == 1) || c.Live(f) != (want[f] > 0) {
						t.Fatalf("frame %v: count %d, want %d; exclusive %v", f, c.Of(f), want[f], c.Exclusive(f))
					}
				}
			},
		})
	})
}

// One frame has more references than its lane holds, as when a guest maps one
// page of a file very often. Several share and drop it at once; the last is told
// once, and the neighbours notice nothing.
func TestR6LargeCountsAreExact(t *testing.T) {
	const workers = 4
	each := int(spillAt())
	c := newCounts(firstFrame, lanes)
	for i := range addr.PFN(lanes) {
		c.begin(firstFrame + i)
	}
	f := firstFrame + 1
	var last atomic.Int32
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			mine := 0
			for mine < each {
				if mine > 0 && rng.IntN(3) == 0 {
					mine--
					if c.Drop(f) {
						last.Add(1)
					}
					continue
				}
				mine++
				c.Share([]addr.PFN{f})
			}
		})
	}
	wg.Wait()
	if got, want := c.Of(f), uint32(workers*each+1); got != want {
		t.Fatalf("count %d, want %d", got, want)
	}
	if !c.large.any() {
		t.Error("nothing was moved aside")
	}
	for range workers {
		wg.Go(func() {
			for range each {
				if c.Drop(f) {
					last.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if last.Load() != 0 || c.Of(f) != 1 || !c.Exclusive(f) || c.large.any() {
		t.Errorf("told of the last %d times, count %d, aside %v", last.Load(), c.Of(f), c.large.by)
	}
	for i := range addr.PFN(lanes) {
		if c.Of(firstFrame+i) != 1 {
			t.Errorf("neighbour %d has count %d", i, c.Of(firstFrame+i))
		}
	}
	if !c.Drop(f) {
		t.Error("the last drop was not the last")
	}
}

func BenchmarkShare(b *testing.B) {
	const n = 512
	c := newCounts(firstFrame, 4*n)
	order := map[string][]addr.PFN{"contiguous": make([]addr.PFN, n), "scattered": make([]addr.PFN, n)}
	for i := range addr.PFN(n) {
		order["contiguous"][i] = firstFrame + i
		order["scattered"][i] = firstFrame + i*5%(4*n)
	}
	for name, frames := range order {
		b.Run("frames="+name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%1024 == 1023 {
					clear(c.words)
				}
				c.Share(frames)
			}
		})
	}
}
