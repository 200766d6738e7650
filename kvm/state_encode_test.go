package kvm

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sampleState() *MachineState {
	return &MachineState{
		VM: VMState{IRQChips: new([3][512]byte), PIT: &PITState{Flags: 1}, Clock: ClockData{Clock: 5}},
		VCPUs: []VCPUState{
			{Regs: GeneralRegs{RAX: 1}, XSave: []byte{1, 2, 3}, MSRs: []MSR{{Index: 7, Data: 8}}, LAPIC: new([1024]byte), CPUID: []CPUIDEntry{{Function: 1, EAX: 2}}},
			{XCR0: 7, MP: MPHalted, Unread: []uint32{9}, TSCKHz: 2000000},
		},
	}
}

func TestEncodedStateComesBack(t *testing.T) {
	want := sampleState()
	b, err := want.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got MachineState
	if err := got.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, &got); d != "" {
		t.Error(d)
	}
}

// TestBadEncodingIsNamed cuts an encoding short everywhere, and changes each of its
// bytes: an error by name or a state, never a panic, and what there was stays after an
// error.
func TestBadEncodingIsNamed(t *testing.T) {
	s := sampleState()
	s.VM.IRQChips, s.VCPUs[0].LAPIC = nil, nil
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	try := func(b []byte) {
		got := MachineState{VM: VMState{Clock: ClockData{Clock: 99}}}
		if err := got.UnmarshalBinary(b); err != nil {
			refused++
			if !errors.Is(err, ErrEncoding) || got.VM.Clock.Clock != 99 {
				t.Fatalf("UnmarshalBinary = %v, %+v", err, got)
			}
		}
	}
	for i := range b {
		try(b[:i])
		for _, x := range []byte{1, 0x80, 0xff} {
			c := append([]byte(nil), b...)
			c[i] ^= x
			try(c)
		}
	}
	if refused < len(b)/2 {
		t.Errorf("only %d of %d were refused", refused, 4*len(b))
	}
}

func FuzzMachineStateUnmarshal(f *testing.F) {
	b, _ := sampleState().MarshalBinary()
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		var s MachineState
		if err := s.UnmarshalBinary(b); err != nil && !errors.Is(err, ErrEncoding) {
			t.Error(err)
		}
	})
}
