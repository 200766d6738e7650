package pagetable

import (
	"math/rand/v2"
	"testing"
)

// Eight entries are passed over at a time only where Revert would leave each as it
// is: whichever of them differs, and by whatever bit, they are looked at.
func TestR6RevertPassesNothingOver(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var own, like [entriesPerLook]uint64
		for i := range own {
			if rng.IntN(4) > 0 {
				own[i] = rng.Uint64() &^ uint64(Writable|Shared|Huge)
			}
			like[i] = own[i] ^ rng.Uint64()&uint64(Writable|Accessed|Dirty)
		}
		if mayDiffer(&own, &like) {
			t.Fatalf("%x and %x are looked at for nothing", own, like)
		}
		i, bit := rng.IntN(entriesPerLook), uint64(1)<<rng.IntN(64)
		switch changed := own; {
		case bit&uint64(Accessed|Dirty) != 0:
		case bit&uint64(Writable) != 0:
			changed[i] |= bit
			if !mayDiffer(&changed, &like) {
				t.Fatalf("an entry that may be written is passed over: %x, %x", changed, like)
			}
		default:
			changed[i] ^= bit
			if !mayDiffer(&changed, &like) {
				t.Fatalf("bit %#x of entry %d is passed over: %x, %x", bit, i, changed, like)
			}
		}
	}
}
