//go:build linux && amd64

package kvm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
)

// stateTarget is a vCPU that is given states of all kinds, and the state that it
// runs with.
type stateTarget struct {
	f     *flat
	v     *VCPU
	good  *VCPUState
	bytes []byte
}

func newStateTarget(t testing.TB, o VMOptions) *stateTarget {
	t.Helper()
	f := &flat{t: t, m: newFlatMemory(t, 4<<20, guestmem.RegionOptions{})}
	f.write(vmStore)
	f.vm = f.newVM(requireKVM(t), f.m, o)
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData), RAX: 77})
	untilOut(t, v)
	s, err := v.State()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return &stateTarget{f, v, s, b}
}

// try decodes b and has the vCPU load it. What it makes of it is its own affair;
// but a refusal is a named error with the former state put back, and afterwards
// a good state loads, and runs.
func (s *stateTarget) try(t testing.TB, b []byte) (refused bool) {
	t.Helper()
	var hostile VCPUState
	if err := hostile.UnmarshalBinary(b); err != nil {
		if !errors.Is(err, ErrEncoding) {
			t.Errorf("UnmarshalBinary = %v", err)
		}
		return true
	}
	regs, err := s.v.Regs()
	if err != nil {
		t.Fatal(err)
	}
	switch err := s.v.SetState(&hostile); {
	case err == nil:
	case !errors.Is(err, ErrHostState):
		t.Errorf("SetState = %v", err)
	case s.v.halfSet != nil:
		t.Errorf("SetState could not put the former state back: %v", err)
	default:
		refused = true
		now, err := s.v.Regs()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(regs, now); d != "" {
			t.Errorf("after a refusal: %s", d)
		}
	}
	if err := s.v.SetState(s.good); err != nil {
		t.Fatalf("the good state, after: %v", err)
	}
	return refused
}

func (s *stateTarget) runs(t testing.TB) {
	t.Helper()
	s.f.store(make([]byte, 8), flatData)
	untilOut(t, s.v)
	if got := s.f.word(flatData); got != 77 {
		t.Errorf("the guest stored %d", got)
	}
	if err := s.v.SetState(s.good); err != nil {
		t.Fatal(err)
	}
}

var hostileOptions = []VMOptions{{}, {IRQChip: IRQChipKernel}}

// TestHostileStates loads states of which some bytes are others: at random, and
// each field of registers in turn with ones.
func TestHostileStates(t *testing.T) {
	rounds := 150
	if *soak {
		rounds = 15000
	}
	for _, o := range hostileOptions {
		s := newStateTarget(t, o)
		rng := rand.New(rand.NewPCG(5, 6))
		refused := 0
		for range rounds {
			b := bytes.Clone(s.bytes)
			for range 1 + rng.IntN(4) {
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
			if s.try(t, b) {
				refused++
			}
		}
		s.runs(t)
		if refused == 0 || refused == rounds {
			t.Errorf("%d of %d were refused", refused, rounds)
		}
		// The special registers and events, eight bytes at a time.
		for _, part := range []func(*VCPUState) any{
			func(s *VCPUState) any { return &s.Sregs },
			func(s *VCPUState) any { return &s.Events },
			func(s *VCPUState) any { return &s.Debug },
			func(s *VCPUState) any { return &s.MSRs },
		} {
			whole := *s.good
			whole.MSRs = slices.Clone(s.good.MSRs)
			at, n := fieldIn(t, &whole, part)
			for off := at; off+8 <= at+n; off += 8 {
				b := bytes.Clone(s.bytes)
				for i := range 8 {
					b[off+i] = 0xff
				}
				s.try(t, b)
			}
		}
		s.runs(t)
	}
}

// fieldIn finds where a part of a state is in its encoding.
func fieldIn(t testing.TB, s *VCPUState, part func(*VCPUState) any) (at, n int) {
	t.Helper()
	whole, err := s.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	w := &stateWriter{}
	w.value(0, part(s))
	section := w.b[8:]
	if at = bytes.Index(whole, section); w.err != nil || at < 0 {
		t.Fatalf("the part is not in the encoding: %v", w.err)
	}
	return at, len(section)
}

func FuzzVCPUSetState(f *testing.F) {
	s := newStateTarget(f, VMOptions{IRQChip: IRQChipKernel})
	f.Add(s.bytes)
	f.Fuzz(func(t *testing.T, b []byte) { s.try(t, b) })
}
