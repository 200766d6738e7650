package guestmem

import (
	"flag"
	"strings"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/invariants"
)

var injectSeed = flag.Uint64("inject.seed", 1, "seed of the first run with failures by chance")

const injectFrames = 384

// injectWorlds are what every scenario is run in.
var injectWorlds = []struct {
	name string
	o    injectOptions
}{
	// The host is asked for one frame at a time and nothing is kept free, so
	// that everything is asked of it, and given back to it.
	{"one frame at a time", injectOptions{memory: MemoryOptions{Size: injectFrames * page, Grow: page, KeepFree: page}}},
	// Where a batch cannot be had, one frame is tried; faults install
	// neighbours, and objects are read sixteen pages at a time.
	{"batches", injectOptions{memory: MemoryOptions{Size: injectFrames * page, Grow: 8 * page, KeepFree: 8 * page, FaultAround: 16}}},
	// A view is told of all that is taken away, and keeps tables for itself.
	{"with a view", injectOptions{memory: MemoryOptions{Size: injectFrames * page, Grow: page, KeepFree: page, FaultAround: 1}, view: true}},
}

// TestR13InjectedFailure lets every pass of every scenario fail: alone; together
// with the one after it, so that asking again after reclaiming fails as well;
// and for so long that nothing succeeds until the operation has given up.
func TestR13InjectedFailure(t *testing.T) {
	for _, wo := range injectWorlds {
		for _, s := range injectScenarios {
			t.Run(wo.name+"/"+s.name, func(t *testing.T) {
				o := wo.o
				w := newInjectWorld(t, o, inject.Plan{})
				s.run(w)
				w.end()
				o.sparse = true
				for _, span := range []int{1, 2, 9} {
					failEach(t, o, s.run, s.atLeast, inject.Plan{Until: span})
				}
			})
		}
	}
	// Before Linux 5.14 there is no MADV_POPULATE_WRITE: fallocate has to do.
	t.Run("populate is missing", func(t *testing.T) {
		o := injectWorlds[0].o
		o.sparse = true
		failEach(t, o, (*injectWorld).single, 30, inject.Plan{Until: 1, Missing: inject.Only("madvise: populate"), Match: inject.Only("fallocate")})
	})
	t.Run("blocks", func(t *testing.T) { injectHugeLeaves(t, injectWorlds[1].o, 1) })
	// Each point by itself, the first time that it is passed.
	t.Run("one point at a time", func(t *testing.T) {
		o := injectWorlds[2].o
		o.sparse = true
		for _, at := range inject.Points() {
			w := newInjectWorld(t, o, inject.Plan{Until: 1, Match: func(p *inject.Point) bool { return p == at }})
			w.family()
			w.end()
			if t.Failed() {
				t.Fatalf("with %v", w.run)
			}
		}
	})
	t.Run("every point", func(t *testing.T) {
		if name, rest, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); name != "" && rest != "" {
			t.Skip("not all scenarios were run; to check that they reach every point run them all")
		}
		for _, p := range inject.Points() {
			if strings.HasPrefix(p.Name(), "region: ") {
				continue // TestR13RegionsInjectedFailure reaches those
			}
			if strings.HasPrefix(p.Name(), "snapshot: ") {
				continue // TestR13SnapshotsInjectedFailure reaches those
			}
			if strings.HasPrefix(p.Name(), "snapfile: ") {
				continue // that package's tests of crashes reach those
			}
			if p.Failed() == 0 {
				t.Errorf("no scenario reaches the point %q: a failure there is not tested", p.Name())
			}
		}
	})
}

// injectRuns is how many runs are made of a scenario at most, when one pass
// fails alone; a quarter of it when several do. A soak makes them all.
func injectRuns() int {
	switch {
	case *soak:
		return 1 << 30
	case invariants.Enabled:
		return 16 // checking is slow
	}
	return 400
}

// failEach runs a scenario with pass 0 on failing, for as long as plan says,
// then a later pass on, until a run comes to its end before that. Of a run in
// which one pass fails, what comes before was verified by the run in which
// nothing does.
func failEach(t *testing.T, o injectOptions, scenario func(*injectWorld), atLeast int, plan inject.Plan) {
	t.Helper()
	span, runs := plan.Until, injectRuns()
	if span > 1 {
		runs /= 4
		// Where what cleans up after a failure fails too, there is nobody left.
		plan.Match = func(p *inject.Point) bool { return p.Name() != "munmap" }
	}
	plan.From, plan.Until = 0, 0
	w := newInjectWorld(t, o, plan)
	scenario(w)
	w.end()
	passes := w.run.Passes()
	if passes < atLeast {
		t.Errorf("only %d calls could fail, want %d", passes, atLeast)
	}
	step := max(1, (passes+runs-1)/runs)
	if step > 1 {
		step |= 1 // what comes in pairs does not hide behind an even step
	}
	for n := 0; !t.Failed(); n += step {
		plan.From, plan.Until = n, n+span
		w := newInjectWorld(t, o, plan)
		scenario(w)
		w.end()
		if t.Failed() {
			t.Fatalf("with %v", w.run)
		}
		if w.run.Failures() == 0 {
			return
		}
	}
}

// Failures by chance, several in one operation, and again when it is made again.
func TestR13FailuresByChance(t *testing.T) {
	rounds := uint64(8)
	switch {
	case *soak:
		rounds = 800
	case invariants.Enabled:
		rounds = 2
	}
	for _, wo := range injectWorlds {
		t.Run(wo.name, func(t *testing.T) {
			wo.o.again = 3
			for seed := *injectSeed; seed < *injectSeed+rounds; seed++ {
				for _, s := range injectScenarios {
					w := newInjectWorld(t, wo.o, inject.Plan{OneIn: 2 + int(seed%5)*3, Seed: seed})
					s.run(w)
					w.end()
					if t.Failed() {
						t.Fatalf("%s with -inject.seed=%d: %v", s.name, seed, w.run)
					}
				}
			}
		})
	}
}

// What the host interrupts is asked again, and nobody hears of it.
func TestR13InterruptedCallsAreMadeAgain(t *testing.T) {
	calls := inject.Only("fallocate", "madvise: populate")
	for _, errno := range []syscall.Errno{syscall.EINTR, syscall.EAGAIN} {
		for _, wo := range injectWorlds {
			for _, s := range injectScenarios {
				match := calls
				if errno == syscall.EAGAIN {
					match = inject.Only("madvise: populate")
				}
				run := inject.Start(inject.Plan{Match: match, OneIn: 2, Errno: errno})
				w := newInjectWorld(t, wo.o, inject.Plan{})
				w.run = run
				s.run(w)
				w.end()
				if t.Failed() || run.Failures() == 0 {
					t.Fatalf("%s, %s, %v: %v", wo.name, s.name, errno, run)
				}
			}
		}
	}
}

// A host that takes nothing back only keeps free frames backed.
func TestR13GivingBackFails(t *testing.T) {
	for _, wo := range injectWorlds {
		for _, s := range injectScenarios {
			w := newInjectWorld(t, wo.o, inject.Plan{Match: inject.Only("fallocate: punch hole"), OneIn: 1})
			w.o.tiny = true // no failure may show
			s.run(w)
			if w.dead {
				t.Errorf("%s, %s: a failure to give back has shown", wo.name, s.name)
			}
			w.o.tiny = false
			w.end()
			if t.Failed() || w.run.Failures() == 0 {
				t.Fatalf("%s, %s: %v", wo.name, s.name, w.run)
			}
		}
	}
}

// stride is how far apart the sizes are that are tried: n where checking is slow.
func stride(n uint64) uint64 {
	if invariants.Enabled {
		return n
	}
	return 1
}

// A memory too small for the scenario: what does not fit is ErrNoMemory.
func TestR13TinyMemories(t *testing.T) {
	for _, s := range injectScenarios {
		done := 0
		for frames := uint64(1); frames <= 100; frames += stride(7) {
			w := newInjectWorld(t, injectOptions{memory: MemoryOptions{Size: frames * page, Grow: page, KeepFree: page}, tiny: true}, inject.Plan{})
			s.run(w)
			if !w.dead {
				done++
			}
			w.end()
			if t.Failed() {
				t.Fatalf("%s with %d frames", s.name, frames)
			}
		}
		if done == 0 {
			t.Errorf("%s fitted nowhere", s.name)
		}
	}
}

// As many areas as may be: what would make more is refused with nothing changed.
func TestR13TooFewAreas(t *testing.T) {
	for _, s := range injectScenarios {
		done := 0
		for areas := uint64(1); areas <= 13; areas += stride(4) {
			w := newInjectWorld(t, injectOptions{
				memory: MemoryOptions{Size: injectFrames * page}, space: SpaceOptions{MaxAreas: int(areas)}, tiny: true,
			}, inject.Plan{})
			s.run(w)
			if !w.dead {
				done++
			}
			w.end()
			if t.Failed() {
				t.Fatalf("%s with %d areas", s.name, areas)
			}
		}
		if done == 0 {
			t.Errorf("%s fitted nowhere", s.name)
		}
	}
}

// Protect takes permissions away a leaf table at a time. When a later table
// cannot be copied, what it had replaced before that is given back, and views
// are told of what it has taken: the next Protect will not find it again.
func TestR13ProtectFailsInTheMiddle(t *testing.T) {
	const tables = 4
	failed := 0
	for n := range 20 {
		w := newInjectWorld(t, injectWorlds[2].o, inject.Plan{})
		w.newSpace()
		w.mapPages(0, 0x40000000, tables*arena.EntriesPerTable, MapOptions{Prot: rw, Flags: anon})
		for i := range addr.GVA(tables) {
			w.write(0, 0x40000000+i<<21, 1, 1)
		}
		w.fork(0)
		w.write(0, 0x40000000, 1, 2)
		w.write(0, 0x40000000+1<<21, 1, 2)
		w.run = inject.Start(inject.Plan{Match: inject.Only("pool: ", "madvise"), From: n, Until: n + 10})
		w.protect(0, 0x40000000, tables*arena.EntriesPerTable, r_)
		failed += w.run.Failures()
		w.protect(0, 0x40000000, tables*arena.EntriesPerTable, rw)
		for i := range addr.GVA(tables) {
			w.write(0, 0x40000000+i<<21, 1, 3)
		}
		w.end()
		if t.Failed() {
			t.Fatalf("with %v", w.run)
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
}
