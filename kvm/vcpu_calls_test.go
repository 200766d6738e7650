//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"golang.org/x/sys/unix"
)

// TestNMIReachesTheGuest injects an NMI, whose handler writes to the port.
func TestNMIReachesTheGuest(t *testing.T) {
	f, v := newInterruptible(t, VMOptions{})
	const vectorNMI = 2
	if err := f.long.SetGate(f.m, vectorNMI, uint64(flatCode)+0x1000, Ring0); err != nil {
		t.Fatal(err)
	}
	if err := v.NMI(); err != nil {
		t.Fatal(err)
	}
	if e := untilOut(t, v); e.Data[0] != 0x5e {
		t.Errorf("%v, want the handler's write", e)
	}
}

// TestSetCPUID shows a guest less than its VM does, before it runs; not afterwards.
func TestSetCPUID(t *testing.T) {
	_, v := newInterruptible(t, VMOptions{})
	entries, err := v.CPUID()
	if err != nil {
		t.Fatal(err)
	}
	const leaf1, monitor = 1, 1 << 3
	at := slices.IndexFunc(entries, func(e CPUIDEntry) bool { return e.Function == leaf1 })
	if at < 0 {
		t.Fatal("no leaf 1")
	}
	entries[at].ECX ^= monitor
	if err := v.SetCPUID(entries); err != nil {
		t.Fatal(err)
	}
	got, err := v.CPUID()
	if err != nil || len(got) <= at || got[at].ECX != entries[at].ECX {
		t.Errorf("leaf 1 is %+v, %v, want ECX %#x", got[at], err, entries[at].ECX)
	}
	if e := run(t, v); e.Kind != VMExitHLT {
		t.Fatal(e)
	}
	entries[at].ECX ^= monitor
	if err := v.SetCPUID(entries); !errors.Is(err, unix.EINVAL) {
		t.Errorf("after it has run: %v, want EINVAL", err)
	}
}

// TestSetClock has the guest's time go on from where it is told.
func TestSetClock(t *testing.T) {
	f, _ := newInterruptible(t, VMOptions{})
	const later = 1 << 50 // ns: 13 days
	if err := f.vm.SetClock(ClockData{Clock: later}); err != nil {
		t.Fatal(err)
	}
	if c, err := f.vm.Clock(); err != nil || c.Clock < later || c.Clock > 2*later {
		t.Errorf("the clock shows %d, %v, want a little more than %d", c.Clock, err, uint64(later))
	}
}

func TestEnableCapRefusals(t *testing.T) {
	f, _ := newInterruptible(t, VMOptions{})
	if err := f.vm.EnableCap(1, 1, 2, 3, 4, 5); !errors.Is(err, guestmem.ErrInvalid) {
		t.Errorf("five arguments: %v", err)
	}
	if err := f.vm.EnableCap(1 << 30); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a capability that there is not: %v", err)
	}
}
