//go:build invariants || race

package invariants

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"
)

// yieldOneIn is how seldom MayYield does; 0 for never.
var yieldOneIn atomic.Uint32

// YieldOneIn has MayYield deschedule its goroutine one time in n, and never if n
// is 0, as in the beginning. It returns what it was before.
func YieldOneIn(n uint32) (before uint32) { return yieldOneIn.Swap(n) }

// MayYield stands where being descheduled lets others in between two steps that
// a rule puts in order. A torture test makes it happen; otherwise it does
// nothing. It may be called anywhere, also inside a read section.
func MayYield() {
	n := yieldOneIn.Load()
	if n == 0 {
		return
	}
	switch r := rand.Uint32N(8 * n); {
	case r == 0:
		time.Sleep(100 * time.Microsecond)
	case r < 3:
		time.Sleep(time.Microsecond)
	case r < 8:
		runtime.Gosched()
	}
}
