package epoch

import (
	"github.com/guestmm/guestmm/internal/variant"
	"runtime"
	"time"
)

// Barrier waits until every read section of s that had begun when it was
// called has ended. Sections of other spaces are not waited for.
func (d *Domain) Barrier(s Space) {
	AssertOutside("Barrier")
	if variant.NoGracePeriod {
		return
	}
	for _, sl := range *d.slots.Load() {
		if w := sl.word.Load(); w>>spaceBits == uint64(s) {
			waitFor(sl, w)
		}
	}
}

// BarrierAll waits for the sections of every space.
func (d *Domain) BarrierAll() {
	AssertOutside("BarrierAll")
	for _, sl := range *d.slots.Load() {
		if w := sl.word.Load(); isSection(w) {
			waitFor(sl, w)
		}
	}
}

// A section mostly takes well under a microsecond, a few where it copies much,
// and up to hundreds of milliseconds where its goroutine was preempted: spin a
// little, let others run, and sleep after that.
const (
	spins     = 300 // about 1 µs of loads
	yields    = 20
	firstNap  = 20 * time.Microsecond
	longestUp = time.Millisecond
)

func waitFor(sl *slot, word uint64) {
	for range spins {
		if sl.word.Load() != word {
			return
		}
	}
	for range yields {
		runtime.Gosched()
		if sl.word.Load() != word {
			return
		}
	}
	for nap := firstNap; sl.word.Load() == word; nap = min(2*nap, longestUp) {
		time.Sleep(nap)
	}
}
