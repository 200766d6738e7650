//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
)

// copyTo makes a VM over a copy of f's memory, with vCPUs as f has.
func (f *flat) copyTo(t *testing.T, o VMOptions) *flat {
	t.Helper()
	n := &flat{t: t, long: f.long}
	for _, r := range f.m.Regions() {
		b := make([]byte, r.Size())
		if _, err := f.m.ReadAt(b, r.Base()); err != nil {
			t.Fatal(err)
		}
		if n.m == nil {
			n.m = newFlatMemory(t, r.Size(), guestmem.RegionOptions{Base: r.Base()})
		} else if _, err := n.m.AddRegion(guestmem.RegionOptions{Base: r.Base(), Size: r.Size()}); err != nil {
			t.Fatal(err)
		}
		n.store(b, r.Base())
	}
	n.vm = n.newVM(requireKVM(t), n.m, o)
	for _, v := range f.vm.VCPUs() {
		if _, err := n.vm.NewVCPU(v.ID()); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestGuestGoesOnInAnotherVM interrupts a computation wherever it is, saves,
// encodes, decodes, and goes on in another VM over a copy of the memory; many
// times. The result is that of a run without interruptions.
func TestGuestGoesOnInAnotherVM(t *testing.T) {
	for _, o := range []VMOptions{{}, {IRQChip: IRQChipKernel, PIT: PITKernel}} {
		// A busy host may take long to interrupt it at all.
		for steps := 3_000_000; goesOnInAnotherVM(t, o, steps) == 0; steps *= 8 {
			if steps > 1e9 {
				t.Fatal("the computation was over before it was interrupted")
			}
		}
	}
}

// goesOnInAnotherVM returns how often the guest has moved.
func goesOnInAnotherVM(t *testing.T, o VMOptions, steps int) (moves int) {
	const multiplier = 6364136223846793005
	want, table := uint64(1), make([]uint64, 4096)
	for range steps {
		want = want*multiplier + 1
		i := want >> 52
		want += table[i]
		table[i] = want
	}
	f := newFlat(t, 4<<20, o, vmMix)
	v := f.vcpu(0, 0, GeneralRegs{RAX: 1, RCX: uint64(steps), RDI: uint64(flatData), R8: multiplier})
	for {
		timer := time.AfterFunc(500*time.Microsecond, v.Kick)
		e := run(t, v)
		timer.Stop()
		if e.Kind == VMExitIO {
			break
		}
		if e.Kind != VMExitKicked {
			t.Fatal(e)
		}
		if moves++; moves > 12 {
			continue // far enough; to the end in this one
		}
		s, err := f.vm.Save()
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		n := f.copyTo(t, o)
		f.vm.Close()
		var back MachineState
		if err := back.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, &back); d != "" {
			t.Fatal(d)
		}
		if err := n.vm.Load(&back); err != nil {
			t.Fatal(err)
		}
		f, v = n, n.vm.VCPUs()[0]
	}
	r, err := v.Regs()
	if err != nil || r.RAX != want {
		t.Fatalf("after %d moves: RAX %#x, want %#x, %v", moves, r.RAX, want, err)
	}
	got := make([]byte, 4096*8)
	f.m.ReadAt(got, flatData)
	for i, w := range table {
		if x := binary.LittleEndian.Uint64(got[8*i:]); x != w {
			t.Fatalf("word %d is %#x, want %#x", i, x, w)
		}
	}
	return moves
}

// TestEachPartOfAStateSurvives puts a mark into every part, and finds it in
// another VM.
func TestEachPartOfAStateSurvives(t *testing.T) {
	o := VMOptions{IRQChip: IRQChipKernel, PIT: PITKernel, VCPUs: 2}
	f := newFlat(t, 4<<20, o, vmVectors)
	f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData), RAX: 0x1122334455667788})
	v := f.vcpu(1, 0, GeneralRegs{RDI: uint64(flatData), RAX: 0x1122334455667788, R12: 12, R13: 13})
	untilOut(t, v)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := v.Sregs()
	check(err)
	s.FS.Base, s.GS.Base, s.CR2, s.CR8 = 0x7f0000001000, 0x7f0000002000, 0xdead000, 3
	check(v.SetSregs(s))
	check(v.SetDebugRegs(DebugRegs{DR: [4]uint64{0x1000, 0x2000, 0x3000, 0x4000}, DR6: 0xffff0ff0, DR7: 0x400}))
	marked := []MSR{
		{Index: msrKernelGSBase, Data: 0x7f0000003000}, {Index: msrStar, Data: 0x0023001000000000}, {Index: msrLstar, Data: 0x100040},
		{Index: msrSFMask, Data: 0x200}, {Index: msrSysenterEIP, Data: 0x100050}, {Index: 0x277, Data: 0x0007040600070406},
	}
	check(v.SetMSRs(marked...))
	l, err := v.LAPIC()
	check(err)
	binary.LittleEndian.PutUint32(l[0xf0:], 0x1ff)   // SVR: enabled
	binary.LittleEndian.PutUint32(l[0x350:], 0x8700) // LVT0: ExtINT, unmasked is not a mark
	binary.LittleEndian.PutUint32(l[0x370:], 0x100fe)
	check(v.SetLAPIC(l))
	events, err := v.Events()
	check(err)
	events.NMIMasked, events.ExceptionInjected, events.ExceptionNr, events.ExceptionHasCode, events.ExceptionCode = 1, 1, 13, 1, 0x28
	check(v.SetEvents(events))
	check(f.vm.SetIRQLine(5, IRQHigh))
	pit, err := f.vm.pit()
	check(err)
	pit.Channels[2].Count, pit.Channels[2].Mode = 0x1234, 3
	check(f.vm.setPIT(pit))

	saved, err := f.vm.Save()
	check(err)
	n := f.copyTo(t, o)
	check(n.vm.Load(saved))
	again, err := n.vm.Save()
	check(err)
	for i := range saved.VCPUs {
		a, b := &saved.VCPUs[i], &again.VCPUs[i]
		sameMSRs(t, a.MSRs, b.MSRs)
		a.MSRs, b.MSRs = nil, nil
		// What time and PAUSE filters move by themselves.
		for _, p := range []*[1024]byte{a.LAPIC, b.LAPIC} {
			clear(p[0x390:0x394])
		}
	}
	if again.VM.Clock.Clock < saved.VM.Clock.Clock || again.VM.Clock.Clock-saved.VM.Clock.Clock > uint64(time.Minute) {
		t.Errorf("the clock goes from %d to %d", saved.VM.Clock.Clock, again.VM.Clock.Clock)
	}
	saved.VM.Clock, again.VM.Clock = ClockData{}, ClockData{}
	for i := range saved.VM.PIT.Channels {
		saved.VM.PIT.Channels[i].CountLoadTime, again.VM.PIT.Channels[i].CountLoadTime = 0, 0
	}
	if d := cmp.Diff(saved, again); d != "" {
		t.Errorf("what was loaded is not what was saved:\n%s", d)
	}
	// The marks are there, and not only equal.
	got := again.VCPUs[1]
	if got.Events.ExceptionNr != 13 || got.Events.ExceptionInjected|got.Events.ExceptionPending == 0 || got.Events.ExceptionCode != 0x28 {
		t.Errorf("events %+v", got.Events)
	}
	if got.Sregs.FS.Base != s.FS.Base || got.Sregs.CR8 != 3 || got.Debug.DR[2] != 0x3000 || got.Regs.R13 != 13 {
		t.Errorf("registers %+v %+v %+v", got.Regs, got.Sregs, got.Debug)
	}
	if id := got.LAPIC[0x23]; id != 1 {
		t.Errorf("LAPIC id %d of vCPU 1", id)
	}
	// The vector state goes on in the guest.
	w := n.vm.VCPUs()[1]
	events.ExceptionInjected, events.NMIMasked = 0, 0
	check(w.SetEvents(events))
	untilOut(t, w)
	var b [26]byte
	n.m.ReadAt(b[:], flatData)
	x := binary.LittleEndian.Uint64(b[:])
	if x != 0x1122334455667788 || binary.LittleEndian.Uint64(b[8:]) != x {
		t.Errorf("XMM2 is % x", b[:16])
	}
	if pi := "\x35\xc2\x68\x21\xa2\xda\x0f\xc9\x00\x40"; string(b[16:]) != pi {
		t.Errorf("ST0 is % x", b[16:])
	}
}

// sameMSRs compares all but the counters that go on by themselves.
func sameMSRs(t *testing.T, a, b []MSR) {
	t.Helper()
	moving := map[uint32]bool{msrTSC: true, 0x3b: true, 0x6e0: true, 0xe7: true, 0xe8: true, 0x40000010: true, 0x40000020: true, 0x34: true}
	values := make(map[uint32]uint64)
	for _, m := range b {
		values[m.Index] = m.Data
	}
	for _, m := range a {
		if now, ok := values[m.Index]; !moving[m.Index] && (!ok || now != m.Data) {
			t.Errorf("MSR %#x goes from %#x to %#x (%v)", m.Index, m.Data, now, ok)
		}
	}
}

func TestAVXStateSurvives(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmAVX)
	if f.vm.sys.host.xcr0()&xfeatAVX == 0 {
		t.Skip("needs AVX: a processor of 2011 or later")
	}
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData), RAX: 0xabcdef})
	s, err := v.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CR4 |= 1 << 18 // OSXSAVE
	if err := errors.Join(v.SetSregs(s), v.SetXCR0(7)); err != nil {
		t.Fatal(err)
	}
	untilOut(t, v)
	saved, err := f.vm.Save()
	if err != nil {
		t.Fatal(err)
	}
	n := f.copyTo(t, VMOptions{})
	if err := n.vm.Load(saved); err != nil {
		t.Fatal(err)
	}
	untilOut(t, n.vm.VCPUs()[0])
	if got := n.word(flatData); got != 0xabcdef {
		t.Errorf("the upper half of YMM3 is %#x", got)
	}
}

// TestStateThatThisHostCannotLoad tries states of other machines: an error names
// the part and both sides, and the vCPU goes on as it was.
func TestStateThatThisHostCannotLoad(t *testing.T) {
	for _, ran := range []bool{false, true} {
		f := newFlat(t, 4<<20, VMOptions{}, vmOut)
		v := f.vcpu(0, 0, GeneralRegs{RAX: 0x33})
		if ran {
			untilOut(t, v)
		}
		good, err := v.State()
		if err != nil {
			t.Fatal(err)
		}
		h := &f.vm.sys.host
		for _, c := range []struct {
			part  string
			spoil func(s *VCPUState)
		}{
			{"XCR0", func(s *VCPUState) { s.XCR0 |= 1 << 62 }},
			{"XSAVE components", func(s *VCPUState) { s.XSave[xsaveHeader+7] = 0x40 }},
			{"XSAVE format", func(s *VCPUState) { s.XSave[xsaveXCompBV+7] = 0x80 }},
			{"XSAVE image", func(s *VCPUState) { s.XSave = s.XSave[:100] }},
			{"XSAVE image", func(s *VCPUState) { s.XSave[xsaveHeader] |= 3; s.XSave[xsaveMXCSR+3] = 0xff }},
			{"LAPIC in the kernel", func(s *VCPUState) { s.LAPIC = new([1024]byte) }},
			{"MP state", func(s *VCPUState) { s.MP = MPHalted }},
			{"MSR 0xc0000bad", func(s *VCPUState) { s.MSRs = append(s.MSRs, MSR{Index: 0xc0000bad, Data: 1}) }},
			{"MSR 0xc0000082", func(s *VCPUState) { s.MSRs = append(s.MSRs, MSR{Index: msrLstar, Data: 1 << 63}) }},
			{"EFER", func(s *VCPUState) { s.Sregs.EFER |= 1 << 63 }},
			{"special registers", func(s *VCPUState) { s.Sregs.CR4 |= 1 << 60 }},
			{"debug registers", func(s *VCPUState) { s.Debug.DR7 = 1 << 63 }},
			{"events", func(s *VCPUState) { s.Events.Flags = 1 << 31 }},
			{"CPUID 0x7.0 EBX", func(s *VCPUState) {
				for i := range s.CPUID {
					if e := &s.CPUID[i]; e.Function == 7 && e.Index == 0 {
						e.EBX |= 1 << bits.TrailingZeros32(^findCPUID(h.cpuid, 7, 0).EBX)
					}
				}
			}},
		} {
			s := *good
			s.XSave = append([]byte(nil), good.XSave...)
			s.MSRs = append([]MSR(nil), good.MSRs...)
			s.CPUID = append([]CPUIDEntry(nil), good.CPUID...)
			s.Regs.RAX = 0x44
			c.spoil(&s)
			err := v.SetState(&s)
			var e *StateError
			if !errors.Is(err, ErrHostState) || !errors.As(err, &e) || !strings.Contains(err.Error(), c.part) {
				t.Errorf("%s: SetState = %v", c.part, err)
				continue
			}
			now, err := v.State()
			if err != nil {
				t.Fatalf("%s: %v", c.part, err)
			}
			sameMSRs(t, good.MSRs, now.MSRs)
			was := *good
			was.MSRs, now.MSRs = nil, nil
			if d := cmp.Diff(&was, now); d != "" {
				t.Fatalf("%s: the refused state has left something behind:\n%s", c.part, d)
			}
		}
		if e := untilOut(t, v); e.Data[0] != 0x33 {
			t.Errorf("the guest goes on with %x", e.Data)
		}
	}
}

// TestFreshVCPUIsFreshAgainAfterARefusedState is the same for a vCPU that was never
// touched: it becomes one that was just made.
func TestFreshVCPUIsFreshAgainAfterARefusedState(t *testing.T) {
	for _, o := range []VMOptions{{}, {IRQChip: IRQChipKernel}} {
		f := newFlat(t, 4<<20, o, vmOut)
		v, err := f.vm.NewVCPU(3)
		if err != nil {
			t.Fatal(err)
		}
		good, err := v.State()
		if err != nil {
			t.Fatal(err)
		}
		s := *good
		s.Regs.RAX = 0x44
		s.Events.Flags = 1 << 31
		if err := v.SetState(&s); !errors.Is(err, ErrHostState) {
			t.Fatalf("SetState = %v", err)
		}
		now, err := v.State()
		if err != nil {
			t.Fatal(err)
		}
		sameMSRs(t, good.MSRs, now.MSRs)
		good.MSRs, now.MSRs = nil, nil
		if d := cmp.Diff(good, now); d != "" {
			t.Errorf("not fresh:\n%s", d)
		}
	}
}

func TestLoadIntoAnotherMachine(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{IRQChip: IRQChipKernel, PIT: PITKernel}, vmOut)
	f.vcpu(0, 0, GeneralRegs{})
	s, err := f.vm.Save()
	if err != nil {
		t.Fatal(err)
	}
	n := f.copyTo(t, VMOptions{})
	if err := n.vm.Load(s); !errors.Is(err, ErrHostState) || !strings.Contains(err.Error(), "LAPIC") {
		t.Errorf("Load into a VM without interrupt controllers = %v", err)
	}
	if err := n.vm.SetState(&s.VM); !errors.Is(err, ErrHostState) {
		t.Errorf("SetState of devices that are not there = %v", err)
	}
	if _, err := n.vm.NewVCPU(7); err != nil {
		t.Fatal(err)
	}
	if err := n.vm.Load(s); !errors.Is(err, ErrHostState) || !strings.Contains(err.Error(), "vCPUs is 1, the host has 2") {
		t.Errorf("Load into a VM of two = %v", err)
	}
}
