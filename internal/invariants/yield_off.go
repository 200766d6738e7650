//go:build !invariants && !race

package invariants

// YieldOneIn does nothing in this build.
func YieldOneIn(uint32) (before uint32) { return 0 }

// MayYield does nothing in this build.
func MayYield() {}
