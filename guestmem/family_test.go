package guestmem_test

import (
	"flag"
	"os"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/familytest"
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
		driveFamily(t, 128<<20, guestmem.SpaceOptions{}, familytest.Options{Spaces: 200, Ops: ops, Seed: seed})
	}
}

// The same with leaves of 2 MiB, which all that is done there splits or shares.
func TestFamilyOfHugeLeavesAgainstNaiveCopies(t *testing.T) {
	ops, seeds := 2500, uint64(2)
	if invariants.Enabled {
		ops, seeds = 300, 1
	}
	if isSoak() {
		ops, seeds = 50_000, 10
	}
	for seed := range seeds {
		driveFamily(t, 1<<30, guestmem.SpaceOptions{HugeLeaves: guestmem.HugeLeavesAlways},
			familytest.Options{Spaces: 24, Ops: ops, Seed: seed, Large: true})
	}
}

func driveFamily(t *testing.T, size uint64, space guestmem.SpaceOptions, o familytest.Options) {
	t.Helper()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	space.MaxPinned = 8 << 20
	first, err := m.NewAddressSpace(space)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	o.Memory, o.First, o.CheckEvery, o.Readers, o.Host = m, first, 100, 2, host
	done, err := familytest.Run(t.Context(), o)
	t.Logf("seed %d: %v", o.Seed, done)
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Stats(); s.FramesInUse != 0 {
		t.Errorf("left in use: %+v", s)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
