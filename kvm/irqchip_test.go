//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
	"golang.org/x/sys/unix"
)

const testVector = 0x40

// newInterruptible makes a guest whose vCPU 0 idles in ring 0, with a handler for one
// vector that writes to the port.
func newInterruptible(t *testing.T, o VMOptions) (*flat, *VCPU) {
	f := newFlat(t, 4<<20, o, vmIdle, vmHandler, vmWindow)
	if err := f.long.SetGate(f.m, testVector, uint64(flatCode)+0x1000, Ring0); err != nil {
		t.Fatal(err)
	}
	v, err := f.vm.NewVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	f.enter(v, Ring0, 0, GeneralRegs{RAX: 0x5e})
	return f, v
}

// TestInterruptsInTheKernel raises a vector by MSI, by a pin of the IOAPIC and by an
// eventfd, at a vCPU that halts in the kernel.
func TestInterruptsInTheKernel(t *testing.T) {
	f, v := newInterruptible(t, VMOptions{IRQChip: IRQChipKernel, PIT: PITKernel})
	l, err := v.LAPIC()
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(l[0xf0:], 0x1ff) // enabled
	if err := v.SetLAPIC(l); err != nil {
		t.Fatal(err)
	}
	// Pin 20 of the IOAPIC to the vector, edge, to APIC 0.
	s, err := f.vm.State()
	if err != nil {
		t.Fatal(err)
	}
	const redirections = 24 // base, ioregsel, id, irr, pad: then 8 bytes each
	binary.LittleEndian.PutUint64(s.IRQChips[2][redirections+8*20:], testVector)
	if err := f.vm.SetState(s); err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	if err := f.vm.AttachIRQFD(event, 20); err != nil {
		t.Fatal(err)
	}
	if e, err := runUntilKicked(v); err != nil || e.Kind != VMExitKicked {
		t.Fatalf("a vCPU that halts in the kernel: %v, %v", e, err)
	}
	for name, raise := range map[string]func() error{
		"MSI": func() error {
			delivered, err := f.vm.SignalMSI(0xfee00000, testVector)
			if err == nil && !delivered {
				err = errors.New("not delivered")
			}
			return err
		},
		"pin": func() error { return errors.Join(f.vm.SetIRQLine(20, IRQHigh), f.vm.SetIRQLine(20, IRQLow)) },
		"eventfd": func() error {
			_, err := unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			return err
		},
	} {
		if err := raise(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e := untilOut(t, v); e.Data[0] != 0x5e {
			t.Fatalf("%s: %v", name, e)
		}
		// The handler has not acknowledged: do so for it.
		l, _ := v.LAPIC()
		clear(l[0x100:0x180])
		if err := v.SetLAPIC(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.vm.DetachIRQFD(event, 20); err != nil {
		t.Error(err)
	}
	if pit, err := f.vm.pit(); err != nil || pit.Channels[0].Gate == 0 {
		t.Errorf("timer %+v, %v", pit, err)
	}
}

// runUntilKicked kicks a Run that sleeps in the kernel.
func runUntilKicked(v *VCPU) (e VCPUExit, err error) {
	done := testutil.Go(func() { e, err = v.Run(context.Background()) })
	v.Kick()
	<-done
	return e, err
}

// TestInterruptsByHand injects where there is no interrupt controller.
func TestInterruptsByHand(t *testing.T) {
	f, v := newInterruptible(t, VMOptions{})
	if e := run(t, v); e.Kind != VMExitHLT {
		t.Fatal(e)
	}
	if err := v.Interrupt(testVector); err != nil {
		t.Fatal(err)
	}
	untilOut(t, v)
	if err := v.RequestIRQWindow(); err != nil {
		t.Fatal(err)
	}
	f.enter(v, Ring0, 2, GeneralRegs{})
	if e := run(t, v); e.Kind != VMExitIRQWindow {
		t.Fatal(e)
	}
	if r, err := v.Regs(); err != nil || r.RFLAGS>>9&1 == 0 {
		t.Errorf("a window with RFLAGS %#x, %v", r.RFLAGS, err)
	}
}

// TestIOEventsReplaceExits has guest writes signal eventfds.
func TestIOEventsReplaceExits(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmStore)
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	signalled := func() uint64 {
		var b [8]byte
		unix.Read(event, b[:])
		return binary.LittleEndian.Uint64(b[:])
	}
	const at = 0x10000000
	match := uint64(7)
	mmio := IOEvent{Space: IOSpaceMMIO, Addr: at, Length: 8, Match: &match, FD: event}
	if err := f.vm.AttachIOEvent(mmio); err != nil {
		t.Fatal(err)
	}
	if err := f.vm.AttachIOEvent(mmio); !errors.Is(err, unix.EEXIST) {
		t.Errorf("attaching twice = %v", err)
	}
	v := f.vcpu(0, 0, GeneralRegs{RDI: at, RAX: 7})
	untilOut(t, v)
	if n := signalled(); n != 1 {
		t.Errorf("signalled %d times", n)
	}
	f.enter(v, Ring3, 0, GeneralRegs{RDI: at, RAX: 8})
	if e := run(t, v); e.Kind != VMExitMMIO {
		t.Fatal(e)
	}
	if err := f.vm.DetachIOEvent(mmio); err != nil {
		t.Fatal(err)
	}
	if err := f.vm.AttachIOEvent(IOEvent{Space: IOSpacePort, Addr: flatPort, Length: 1, FD: event}); err != nil {
		t.Fatal(err)
	}
	if e := run(t, v); e.Kind != VMExitMMIO { // the port was no exit
		t.Fatal(e)
	}
	if n := signalled(); n == 0 {
		t.Error("the port signalled nothing")
	}
}
