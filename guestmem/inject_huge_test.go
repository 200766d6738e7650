package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
)

// injHuge is 4 MiB over the border of two 1 GiB tables.
const injHuge addr.GVA = 0x80000000 - 2<<20

// hugeLeaves is memory that comes 2 MiB at a time, split, shared, collapsed.
func (w *injectWorld) hugeLeaves() {
	const second = injHuge + 2<<20
	w.newSpace()
	w.mapPages(0, injHuge, 1024, MapOptions{Prot: rw, Flags: anon})
	w.advise(0, injHuge, 1024, AdviceHugePage, nil)
	w.write(0, injHuge+page, 2, 1)
	w.write(0, second, 3, 2)
	w.fork(0)
	w.write(1, injHuge+2*page, 1, 3) // splits the child's
	w.write(0, second+page, 1, 4)    // and the parent's
	w.protect(1, injHuge, 512, r_)
	w.protect(0, injHuge+page, 2, r_)
	w.protect(0, injHuge, 512, ProtRead|ProtWrite)
	w.pin(1, second+page, 2, Write)
	w.fork(1)
	w.discard(0, injHuge+page, 510)
	w.unmap(1, injHuge+509*page, 5*page)
	w.advise(0, injHuge, 1024, AdviceCollapse, nil)
	w.write(0, injHuge+page, 2, 5)
	w.closeSpace(1)
	w.releasePins()
	w.write(2, second, 3, 6)
	w.remap(0, injHuge, 512, injFar, 512, 0)
	w.unmap(0, 0, uint64(DefaultHighest))
	w.write(2, injHuge+page, 0, 7)
	w.closeSpace(0)
	w.protect(2, injHuge, 1024, ProtRead|ProtWrite)
	w.write(2, second+2*page, 1, 8)
}

// TestR13InjectedFailureOfHugeLeaves is TestR13InjectedFailure for memory that has
// room for blocks.
func TestR13InjectedFailureOfHugeLeaves(t *testing.T) {
	for _, wo := range injectWorlds[1:] {
		spans := []int{1}
		if *soak {
			spans = []int{1, 2, 9}
		}
		t.Run(wo.name, func(t *testing.T) { injectHugeLeaves(t, wo.o, spans...) })
	}
}

func injectHugeLeaves(t *testing.T, o injectOptions, spans ...int) {
	o.memory.Size, o.memory.Grow = 12<<20, 16*page
	w := newInjectWorld(t, o, inject.Plan{})
	w.hugeLeaves()
	if s := w.m.Stats(); !t.Failed() && (s.HugeInstalled != 2 || s.HugeCollapsed == 0 || s.HugeSplit == 0) {
		t.Errorf("the scenario has lost its point: %+v", s)
	}
	w.end()
	o.sparse = true
	for _, span := range spans {
		failEach(t, o, (*injectWorld).hugeLeaves, 20, inject.Plan{Until: span})
	}
	// Which calls fail above depends on how many there are, where not all do.
	for first := range 3 {
		w := newInjectWorld(t, o, inject.Plan{From: first, Until: first + 1, Match: func(p *inject.Point) bool { return p.Name() == "pool: allocate a block" }})
		w.hugeLeaves()
		w.end()
		if t.Failed() || w.run.Failures() == 0 {
			t.Fatalf("block %d was not refused, or not well, with %v", first, w.run)
		}
	}
}
