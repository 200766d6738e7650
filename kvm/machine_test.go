//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// A flat guest: one region from 0 on, the LongMode block at 0x1000, a page of code
// for each program from flatCode on, and data from flatData on.
const (
	flatBlock addr.GPA = 0x1000
	flatCode  addr.GPA = 0x100000
	flatStack          = 0x1ff000
	flatData  addr.GPA = 0x200000
	flatPort           = 0x1f0
)

type flat struct {
	t    testing.TB
	m    *guestmem.Memory
	vm   *VM
	long *LongMode
}

func newFlatMemory(t testing.TB, sizeBytes uint64, o guestmem.RegionOptions) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	o.Size = sizeBytes
	if _, err := m.AddRegion(o); err != nil {
		t.Fatal(err)
	}
	return m
}

// newFlat makes a flat guest. Cleanup closes it.
func newFlat(t testing.TB, sizeBytes uint64, o VMOptions, programs ...program) *flat {
	t.Helper()
	s := requireKVM(t)
	f := &flat{t: t, m: newFlatMemory(t, sizeBytes, guestmem.RegionOptions{})}
	f.write(programs...)
	f.vm = f.newVM(s, f.m, o)
	return f
}

func (f *flat) write(programs ...program) {
	f.t.Helper()
	var err error
	if f.long, err = SetupLongMode(f.m, LongModeOptions{Base: flatBlock}); err != nil {
		f.t.Fatal(err)
	}
	for i, p := range programs {
		f.store(p.bytes(), flatCode+addr.GPA(i)*addr.PageSize)
	}
}

func (f *flat) newVM(s *System, m *guestmem.Memory, o VMOptions) *VM {
	f.t.Helper()
	vm, err := s.NewVM(m, o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return vm
}

func (f *flat) store(b []byte, gpa addr.GPA) {
	f.t.Helper()
	if _, err := f.m.WriteAt(b, gpa); err != nil {
		f.t.Fatal(err)
	}
}

func (f *flat) word(gpa addr.GPA) uint64 {
	f.t.Helper()
	var b [8]byte
	if _, err := f.m.ReadAt(b[:], gpa); err != nil {
		f.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// vcpu makes a vCPU that is about to run a program in ring 3.
func (f *flat) vcpu(id, prog int, regs GeneralRegs) *VCPU {
	f.t.Helper()
	v, err := f.vm.NewVCPU(id)
	if err != nil {
		f.t.Fatal(err)
	}
	f.enter(v, Ring3, prog, regs)
	return v
}

func (f *flat) enter(v *VCPU, ring Ring, prog int, regs GeneralRegs) {
	f.t.Helper()
	regs.RIP = uint64(flatCode) + uint64(prog)*addr.PageSize
	if regs.RSP == 0 {
		regs.RSP = flatStack - uint64(v.ID())<<12
	}
	if regs.RDX == 0 {
		regs.RDX = flatPort
	}
	if err := f.long.Enter(v, ring, regs); err != nil {
		f.t.Fatal(err)
	}
}

func run(t testing.TB, v *VCPU) VCPUExit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := v.Run(ctx)
	if err != nil {
		t.Fatalf("Run = %v, %v", e, err)
	}
	return e
}

// untilOut runs to the program's exit.
func untilOut(t testing.TB, v *VCPU) VCPUExit {
	t.Helper()
	e := run(t, v)
	if e.Kind != VMExitIO || e.Port != flatPort {
		r, _ := v.Regs()
		t.Fatalf("exit %v at %+x", e, r)
	}
	return e
}

func TestVMExitsByPort(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmOut, vmIn, vmRepOut)
	v := f.vcpu(0, 0, GeneralRegs{RAX: 0x5a})
	for range 3 {
		e := run(t, v)
		want := VCPUExit{Kind: VMExitIO, Reason: exitIO, Access: guestmem.Write, Port: flatPort, Size: 1, Count: 1, Data: []byte{0x5a}}
		if d := cmp.Diff(want, e); d != "" {
			t.Fatal(d)
		}
	}
	f.enter(v, Ring3, 1, GeneralRegs{RDI: uint64(flatData)})
	for i := range uint32(3) {
		e := run(t, v)
		if e.Kind != VMExitIO || e.Access != guestmem.Read || e.Size != 4 || len(e.Data) != 4 {
			t.Fatal(e)
		}
		binary.LittleEndian.PutUint32(e.Data, 0x1000+i)
		if e = run(t, v); binary.LittleEndian.Uint32(e.Data) != 0x1000+i || e.Access != guestmem.Write {
			t.Fatal(e)
		}
		if got := uint32(f.word(flatData)); got != 0x1000+i {
			t.Fatalf("the guest stores %#x", got)
		}
	}
	f.store([]byte("a string of bytes"), flatData)
	f.enter(v, Ring3, 2, GeneralRegs{RSI: uint64(flatData), RCX: 17})
	var got []byte
	for len(got) < 18 {
		e := run(t, v)
		if e.Kind != VMExitIO {
			t.Fatal(e)
		}
		got = append(got, e.Data...)
	}
	if string(got[:17]) != "a string of bytes" {
		t.Errorf("rep outsb: %q", got)
	}
}

// TestHolesAndReadOnlyMemoryExit reads and writes a hole and a read-only
// region: exits with both sides, and the guest goes on with the answer.
func TestHolesAndReadOnlyMemoryExit(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmLoad, vmStore, vmLoadWide)
	const hole, rom = 0x10000000, 0x20000000
	if _, err := f.m.AddRegion(guestmem.RegionOptions{Base: rom, Size: 1 << 20, Access: guestmem.RegionReadOnly}); err != nil {
		t.Fatal(err)
	}
	v := f.vcpu(0, 0, GeneralRegs{RDI: hole + 8})
	e := run(t, v)
	if e.Kind != VMExitMMIO || e.Access != guestmem.Read || e.GPA != hole+8 || len(e.Data) != 8 {
		t.Fatal(e)
	}
	binary.LittleEndian.PutUint64(e.Data, 0x1122334455667788)
	untilOut(t, v)
	if r, err := v.Regs(); err != nil || r.RAX != 0x1122334455667788 {
		t.Fatalf("the guest loads %#x, %v", r.RAX, err)
	}
	for _, at := range []uint64{hole, rom} {
		f.enter(v, Ring3, 1, GeneralRegs{RDI: at, RAX: 77})
		want := VCPUExit{Kind: VMExitMMIO, Reason: exitMMIO, Access: guestmem.Write, Size: 8, Count: 1, HasGPA: true, GPA: addr.GPA(at), Data: []byte{77, 0, 0, 0, 0, 0, 0, 0}}
		if d := cmp.Diff(want, run(t, v)); d != "" {
			t.Fatal(d)
		}
		untilOut(t, v)
	}
	f.enter(v, Ring3, 0, GeneralRegs{RDI: rom, RAX: 5})
	untilOut(t, v)
	if r, _ := v.Regs(); r.RAX != 0 {
		t.Errorf("the guest reads %#x in read-only memory that nobody wrote", r.RAX)
	}
}

// TestAccessOfSeveralPartsIsFinishedFirst loads 16 bytes from a hole: two exits,
// and between them no state is to be had.
func TestAccessOfSeveralPartsIsFinishedFirst(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmLoadWide)
	const hole = 0x10000000
	v := f.vcpu(0, 0, GeneralRegs{RDI: hole, RSI: uint64(flatData)})
	e := run(t, v)
	if e.Kind == VMExitInternalError {
		t.Skipf("%v: this KVM does not emulate a 16-byte load; on one that does the test runs", e)
	}
	if e.Kind != VMExitMMIO || e.GPA != hole {
		t.Fatal(e)
	}
	copy(e.Data, "01234567")
	if _, err := v.Regs(); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("Regs between two parts = %v", err)
	}
	if e = run(t, v); e.Kind != VMExitMMIO || e.GPA != hole+8 {
		t.Fatal(e)
	}
	copy(e.Data, "89abcdef")
	untilOut(t, v)
	var got [16]byte
	f.m.ReadAt(got[:], flatData)
	if string(got[:]) != "0123456789abcdef" {
		t.Errorf("the guest loads %q", got)
	}
}

// TestStateCompletesTheExit looks at the registers behind an access that was
// answered and not run on: the answer is in them, and is not given twice.
func TestStateCompletesTheExit(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmIn)
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData), RAX: 0xffffffffffffffff})
	e := run(t, v)
	copy(e.Data, []byte{1, 2, 3, 4})
	r, err := v.Regs()
	if err != nil {
		t.Fatal(err)
	}
	if r.RAX != 0x04030201 || r.RIP != uint64(flatCode)+1 {
		t.Fatalf("RAX %#x, RIP %#x", r.RAX, r.RIP)
	}
	r.RAX = 9
	if err := v.SetRegs(r); err != nil {
		t.Fatal(err)
	}
	if e := untilOut(t, v); e.Data[0] != 9 {
		t.Errorf("the guest goes on with %x", e.Data)
	}
}

func TestExitsOfABrokenGuest(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmUD2, vmHalt, vmEmulated)
	v := f.vcpu(0, 0, GeneralRegs{})
	if e := run(t, v); e.Kind != VMExitShutdown {
		t.Errorf("an exception without a handler: %v", e)
	}
	w, err := f.vm.NewVCPU(1)
	if err != nil {
		t.Fatal(err)
	}
	f.enter(w, Ring0, 1, GeneralRegs{})
	for range 2 {
		if e := run(t, w); e.Kind != VMExitHLT {
			t.Errorf("hlt: %v", e)
		}
	}
	f.enter(w, Ring0, 2, GeneralRegs{RDI: uint64(flatData)})
	switch e := run(t, w); e.Kind {
	case VMExitInternalError:
		if len(e.Instruction) < 4 || string(e.Instruction[:4]) != vmEmulated.code[:4] || e.Code != 1 {
			t.Errorf("internal error without its instruction: %v", e)
		}
	case VMExitIO:
	default:
		t.Errorf("cmpxchg16b in ring 0: %v", e)
	}
	// The other vCPU's death is its own.
	f.enter(w, Ring0, 1, GeneralRegs{})
	if e := run(t, w); e.Kind != VMExitHLT {
		t.Errorf("hlt after it: %v", e)
	}
}

// TestMemoryFaultIsAnExit has the host mapping behind a slot go away, and come
// back: an exit in between, and no harm.
func TestMemoryFaultIsAnExit(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmLoad)
	const base = 0x10000000
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	mem[0] = 0x42
	r, err := f.m.AddRegion(guestmem.RegionOptions{Base: base, Size: 1 << 20, Backing: guestmem.BackingForeign, Mapping: addr.HVA(addressOf(mem))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.m.RemoveRegion(r); err != nil {
			t.Error(err)
		}
	}()
	v := f.vcpu(0, 0, GeneralRegs{RDI: base})
	if err := unix.Mprotect(mem, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	e := run(t, v)
	if e.Kind != VMExitMemoryFault || e.Errno != unix.EFAULT || e.HasGPA && e.GPA != base {
		t.Fatal(e)
	}
	if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	if e := untilOut(t, v); e.Data[0] != 0x42 {
		t.Errorf("after the memory is back: %v", e)
	}
}

func TestVMRefusesWhatItCannotBe(t *testing.T) {
	s := requireKVM(t)
	m := newFlatMemory(t, 1<<20, guestmem.RegionOptions{})
	for _, c := range []struct {
		o    VMOptions
		want error
	}{
		{VMOptions{Dirty: DirtyRing, RingEntries: 1000}, guestmem.ErrInvalid},
		{VMOptions{Dirty: DirtyRing, RingEntries: 1 << 30}, ErrNotSupported},
		{VMOptions{PIT: PITKernel}, guestmem.ErrInvalid},
	} {
		vm, err := s.NewVM(m, c.o)
		if !errors.Is(err, c.want) {
			t.Errorf("NewVM(%+v) = %v, want %v", c.o, err, c.want)
		}
		if vm != nil {
			vm.Close()
		}
	}
}

func TestClosedVMSaysSo(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmOut)
	v := f.vcpu(0, 0, GeneralRegs{})
	run(t, v)
	for range 2 {
		if err := f.vm.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v.Kick()
	_, errRun := v.Run(context.Background())
	_, errRegs := v.Regs()
	_, errState := f.vm.State()
	_, errVCPU := f.vm.NewVCPU(1)
	for _, err := range []error{errRun, errRegs, errState, errVCPU, f.vm.SetIRQLine(0, IRQHigh)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	// The memory takes regions again, with nobody to refuse them.
	if _, err := f.m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20}); err != nil {
		t.Error(err)
	}
}
