package guestmem

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// Scripts at random, of calls that do not wait: faults that a monitor would be told of
// are SIGBUS, and no events are asked for. In pages [0, 16) is private memory, in
// [32, 48) shared, in [64, 80) what nobody watches.

const randomCalls = 60

func randomScript(c *script, rng *rand.Rand) {
	features := uffd.FeatureSigbus | uffd.FeaturePoison | uffd.FeatureMove
	if rng.IntN(2) == 0 {
		features |= uffd.FeatureWPUnpopulated
	}
	c.open("a", features)
	c.open("b", features)
	c.h.mapPages(0, 16, false)
	c.h.mapPages(32, 16, true)
	c.h.mapPages(64, 16, false)
	modes := []uffd.Mode{uffd.Missing, uffd.WP, uffd.Missing | uffd.WP, uffd.Minor, uffd.Minor | uffd.WP}
	flags := []uffd.Flags{0, uffd.Armed, uffd.DontWake}
	pick := func() (p, n int) {
		p = []int{0, 0, 32, 32, 64}[rng.IntN(5)] + rng.IntN(16)
		return p, 1 + rng.IntN(min(4, 16-p%16))
	}
	// The kernel maps neighbours of a shared page that is read (D-fault-around), so
	// that until the end such pages are only written.
	reads := func(p int) int {
		if p/16 == 2 {
			return 0
		}
		return rng.IntN(2)
	}
	// What is installed is one page at a time, so that it does not matter where areas
	// have merged (D-merging).
	for range randomCalls {
		p, n := pick()
		m := []string{"a", "a", "a", "b"}[rng.IntN(4)]
		b := byte(1 + rng.IntN(120))
		switch rng.IntN(22) {
		case 0, 1:
			if p < 64 {
				mode := modes[rng.IntN(len(modes))]
				n += rng.IntN(17 - p%16 - n)
				if mode&uffd.WP == 0 {
					c.unreg(m, p, n) // D-monitor-modes
				}
				c.reg(m, p, n, mode)
			}
		case 2:
			c.unreg(m, p, n)
		case 3, 4:
			c.copy(m, p, 1, b, flags[rng.IntN(2)])
		case 5:
			c.zero(m, p, 1)
		case 6:
			c.poison(m, p, 1)
		case 7:
			c.cont(m, p, 1, flags[rng.IntN(2)])
		case 8, 9, 10:
			c.wp(m, p, n, flags[rng.IntN(3)])
		case 11:
			q := rng.IntN(16)
			c.store(64+q, b) // a page of zeroes has another owner in the kernel
			c.move(m, p, 64+q, 1, []uffd.Flags{0, uffd.AllowHoles}[rng.IntN(2)])
		case 12:
			c.advise(p, n, int(AdviceDontNeed))
		case 13:
			c.advise(p, n, int(AdviceRemove))
		case 14:
			if p/16 == 2 {
				continue // Linux 6.18 tries for ever where shared memory is armed
			}
			c.advise(p, n, []int{int(AdviceGuardInstall), int(AdviceGuardRemove)}[rng.IntN(2)])
		case 15:
			c.advise(p, n, []int{int(AdvicePopulateWrite), int(AdvicePopulateRead)}[reads(p)])
		case 16:
			c.say("protect %d+%d = %s", p, n, errnoName(c.h.protect(p, n, []int{1, 3, 3}[rng.IntN(3)])))
		case 17, 18:
			c.store(p, b)
		case 19, 20:
			if reads(p) == 1 {
				c.load(p)
			}
		case 21:
			// All of what lies there, so that how areas have merged does not matter.
			from := []int{0, 32, 64}[rng.IntN(3)]
			c.remap(from, 1, 1, 96, 3)
			c.load(96)
			c.store(96, b)
			c.unmap(96, 1)
			c.h.mapPages(from, 1, from == 32)
		}
	}
	for p := range 80 {
		c.load(p)
	}
}

// TestMonitorAtRandom compares the answers of a monitor with those of the kernel.
func TestMonitorAtRandom(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMove)
	seeds := uint64(150)
	if *soak {
		seeds = 20_000
	}
	m := newMemory(t, 4<<20)
	for seed := range seeds {
		var logs [2][]string
		as := newSpace(t, m)
		for i, h := range []cornerHost{kernelCorners{t}, ourHost{as}} {
			c := &script{t: t, h: h, m: map[string]cornerMonitor{}, busy: map[string]chan string{}}
			randomScript(c, rand.New(rand.NewPCG(seed, 7)))
			for _, m := range c.m {
				m.close()
			}
			_ = h.unmap(0, 256)
			logs[i] = c.log
		}
		mustCheck(t, m)
		mustDo(t, as.Close())
		if diff := cmp.Diff(logs[0], logs[1]); diff != "" {
			t.Fatalf("seed %d: the kernel (-) and the monitor (+) differ:\n%s", seed, fmt.Sprint(diff, "\nall of it:\n", strings.Join(logs[0], "\n")))
		}
	}
}
