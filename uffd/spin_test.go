package uffd

import (
	"runtime"
	"testing"
	"time"
)

// Waits that take so long by either way: the share that a spinner spins through
// once it has had time to find out.
func TestSpinnerFollowsWhatPays(t *testing.T) {
	s := newSpinner()
	if s.begin() != spin {
		t.Error("a new one does not try to spin")
	}
	const n = 4 * (stayWaits + tryWaits)
	share := func(spinning, sleeping time.Duration) float64 {
		spun := 0
		for i := range 2 * n {
			w := s.begin()
			s.end(w, map[way]time.Duration{spin: spinning, sleep: sleeping}[w])
			if i >= n && w == spin {
				spun++
			}
		}
		return float64(spun) / n
	}
	for _, tc := range []struct {
		name            string
		spin, sleep     time.Duration
		atLeast, atMost float64
	}{
		{"spinning is quick", 3 * time.Microsecond, 20 * time.Microsecond, 0.9, 0.99},
		{"the guest needs the core", 12 * time.Microsecond, 8 * time.Microsecond, 0.01, 0.1},
		{"back again", 3 * time.Microsecond, 20 * time.Microsecond, 0.9, 0.99},
		{"hardly any gain", 19 * time.Microsecond, 20 * time.Microsecond, 0.01, 0.1},
		{"nobody faults", time.Second, time.Second, 0.001, 0.01},
		{"longer than long", time.Second, time.Minute, 0.001, 0.01},
	} {
		if got := share(tc.spin, tc.sleep); got < tc.atLeast || got > tc.atMost {
			t.Errorf("%s: spins through %.2f of the waits, want %.2f to %.2f", tc.name, got, tc.atLeast, tc.atMost)
		}
	}
}

// Whoever waits, half of the processors are left to those who are waited for.
func TestSpinnersAreFew(t *testing.T) {
	limit := min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) / 2
	n := 0
	for enterSpin() {
		n++
		if n > limit {
			break
		}
	}
	for range n {
		leaveSpin()
	}
	if n != limit {
		t.Errorf("%d spin at once, want %d", n, limit)
	}
	if n := spinners.Load(); n != 0 {
		t.Errorf("%d spinners are left", n)
	}
}
