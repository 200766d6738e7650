package guestmem_test

import (
	"flag"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/familytest"
	"github.com/guestmm/guestmm/internal/invariants"
)

// isSoak reports whether -soak was given; the flag is the internal tests'.
func isSoak() bool { return flag.Lookup("soak").Value.String() == "true" }

// Families of up to 200 address spaces beside naive copies, read by Go code.
func TestFamilyOf200AgainstNaiveCopies(t *testing.T) {
	ops, seeds := 4000, uint64(2)
	if invariants.Enabled { // each section looks at its stack, each freed frame is filled
		ops, seeds = 600, 1
	}
	if isSoak() {
		ops, seeds = 100_000, 10
	}
	for seed := range seeds {
		m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 128 << 20})
		if err != nil {
			t.Fatal(err)
		}
		first, err := m.NewAddressSpace(guestmem.SpaceOptions{MaxPinned: 64 << 12})
		if err != nil {
			t.Fatal(err)
		}
		done, err := familytest.Run(t.Context(), familytest.Options{
			Memory: m, First: first, Spaces: 200, Ops: ops, Seed: seed, CheckEvery: 100, Readers: 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("seed %d: %v", seed, done)
		if s := m.Stats(); s.FramesInUse != 0 {
			t.Errorf("left in use: %+v", s)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
