package guestmem

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

// fewPages is the torture on so few spaces and pages that several goroutines are
// at the same ones all the time. It copies no bytes, only words, which is atomic.
type fewPages struct{ *torture }

const fewSlots = 3

func newFewPages(t *testing.T, m *Memory) fewPages {
	x := fewPages{newTorture(t, m)}
	x.most = 3
	x.yieldOneIn(4)
	return x
}

func (x fewPages) run() { x.torture.run(2*runtime.GOMAXPROCS(0)+3, x.step) }

// hotSlot returns the slot that most workers are at for the moment, and sometimes
// another.
func (x fewPages) hotSlot(rng *rand.Rand) int {
	if rng.IntN(32) == 0 {
		x.hot.Store(int64(rng.IntN(fewSlots)))
	}
	if rng.IntN(4) == 0 {
		return rng.IntN(fewSlots)
	}
	return int(x.hot.Load())
}

func (x fewPages) step(k *kin, a Accessor, w *hand) (what int) {
	slot := x.hotSlot(w.rng)
	n := 1 + w.rng.IntN(fewSlots-slot)
	var err error
	switch d := w.rng.IntN(100); {
	case d < 12:
		what, err = didRead, x.load(k, a, w, slot)
	case d < 34:
		what, err = didWrite, x.store(k, a, w, slot)
	case d < 50:
		what = didSection
		x.section(k, a, w, slot)
	case d < 57:
		what = didLedger
		x.ledger(k, a, w.rng)
	case d < 60:
		what, err = didRead, a.Fault(ctx, slotAt(slot), []Access{Read, Write}[w.rng.IntN(2)])
	case d < 64:
		what = didMap
	case d < 67:
		what = didUnmap
	case d < 73:
		what = didProtect
	case d < 77:
		what = didDiscard
	case d < 83:
		what, err = didFork, x.fork(k)
	case d < 87:
		what = didClose
	case d < 90:
		what, err = didPin, x.pin(k, slotAt(slot), n, w.rng)
	case d < 94:
		what, err = didSum, x.sum(a)
	case d < 99:
		what, err = didFile, x.file(k, a, w.rng)
	default:
		what = didStats
		x.m.Stats()
		_ = k.as.String()
	}
	x.explain(what, err)
	x.explain(what, x.change(k, what, slot, n, w.rng))
	return what
}

// Few spaces and few pages.
func TestR1TortureOfFewPages(t *testing.T) { newFewPages(t, newMemory(t, 8<<20)).run() }
