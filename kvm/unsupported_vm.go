//go:build !(linux && amd64)

package kvm

import (
	"context"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// VM is a whole virtual machine; there is none here. Its methods answer
// ErrNotSupported.
type VM struct{}

// NewVM answers ErrNotSupported.
func (*System) NewVM(*guestmem.Memory, VMOptions) (*VM, error) { return nil, unsupported("NewVM") }

// CPUID answers ErrNotSupported.
func (*System) CPUID(VMOptions) ([]CPUIDEntry, []CPUIDChange, error) {
	return nil, nil, unsupported("CPUID")
}

// VMSlots returns a setter that answers ErrNotSupported.
func VMSlots(int) guestmem.SlotSetter { return noSlots{} }

type noSlots struct{}

func (noSlots) SetSlot(guestmem.Slot) error { return unsupported("KVM_SET_USER_MEMORY_REGION") }

func (*VM) Close() error                                  { return nil }
func (*VM) Memory() *guestmem.Memory                      { return nil }
func (*VM) Slots() *SlotTable                             { return nil }
func (*VM) VCPUs() []*VCPU                                { return nil }
func (*VM) Pause()                                        {}
func (*VM) Resume()                                       {}
func (*VM) NewVCPU(int) (*VCPU, error)                    { return nil, unsupported("NewVCPU") }
func (*VM) EnableCap(uint32, ...uint64) error             { return unsupported("EnableCap") }
func (*VM) CollectDirty(*guestmem.Region, []uint64) error { return unsupported("CollectDirty") }

// CollectDirtyPages answers ErrNotSupported.
func (*VM) CollectDirtyPages(*guestmem.Region, func(first, n uint64)) error {
	return unsupported("CollectDirtyPages")
}
func (*VM) State() (*VMState, error)                  { return nil, unsupported("State") }
func (*VM) SetState(*VMState) error                   { return unsupported("SetState") }
func (*VM) Save() (*MachineState, error)              { return nil, unsupported("Save") }
func (*VM) Load(*MachineState) error                  { return unsupported("Load") }
func (*VM) Clock() (ClockData, error)                 { return ClockData{}, unsupported("Clock") }
func (*VM) SetClock(ClockData) error                  { return unsupported("SetClock") }
func (*VM) SetIRQLine(uint32, IRQLevel) error         { return unsupported("SetIRQLine") }
func (*VM) SignalMSI(uint64, uint32) (bool, error)    { return false, unsupported("SignalMSI") }
func (*VM) AttachIRQFD(int, uint32) error             { return unsupported("AttachIRQFD") }
func (*VM) DetachIRQFD(int, uint32) error             { return unsupported("DetachIRQFD") }
func (*VM) AttachIOEvent(IOEvent) error               { return unsupported("AttachIOEvent") }
func (*VM) DetachIOEvent(IOEvent) error               { return unsupported("DetachIOEvent") }
func (*VM) NewGuestMemfd(uint64) (*GuestMemfd, error) { return nil, unsupported("NewGuestMemfd") }

// GuestMemfd is memory whose file belongs to one VM; there is none here.
type GuestMemfd struct{}

func (*GuestMemfd) Mapping() addr.HVA { return 0 }
func (*GuestMemfd) Close() error      { return nil }

// VCPU is one virtual CPU of a VM; there is none here. Its methods answer
// ErrNotSupported.
type VCPU struct{}

func (*VCPU) ID() int                                  { return 0 }
func (*VCPU) VM() *VM                                  { return nil }
func (*VCPU) Run(context.Context) (VCPUExit, error)    { return VCPUExit{}, unsupported("Run") }
func (*VCPU) Kick()                                    {}
func (*VCPU) State() (*VCPUState, error)               { return nil, unsupported("State") }
func (*VCPU) SetState(*VCPUState) error                { return unsupported("SetState") }
func (*VCPU) Regs() (GeneralRegs, error)               { return GeneralRegs{}, unsupported("Regs") }
func (*VCPU) SetRegs(GeneralRegs) error                { return unsupported("SetRegs") }
func (*VCPU) Sregs() (SpecialRegs, error)              { return SpecialRegs{}, unsupported("Sregs") }
func (*VCPU) SetSregs(SpecialRegs) error               { return unsupported("SetSregs") }
func (*VCPU) DebugRegs() (DebugRegs, error)            { return DebugRegs{}, unsupported("DebugRegs") }
func (*VCPU) SetDebugRegs(DebugRegs) error             { return unsupported("SetDebugRegs") }
func (*VCPU) Events() (VCPUEvents, error)              { return VCPUEvents{}, unsupported("Events") }
func (*VCPU) SetEvents(VCPUEvents) error               { return unsupported("SetEvents") }
func (*VCPU) MPState() (MPState, error)                { return 0, unsupported("MPState") }
func (*VCPU) SetMPState(MPState) error                 { return unsupported("SetMPState") }
func (*VCPU) LAPIC() ([1024]byte, error)               { return [1024]byte{}, unsupported("LAPIC") }
func (*VCPU) SetLAPIC([1024]byte) error                { return unsupported("SetLAPIC") }
func (*VCPU) XCR0() (uint64, error)                    { return 0, unsupported("XCR0") }
func (*VCPU) SetXCR0(uint64) error                     { return unsupported("SetXCR0") }
func (*VCPU) XSave() ([]byte, error)                   { return nil, unsupported("XSave") }
func (*VCPU) SetXSave([]byte) error                    { return unsupported("SetXSave") }
func (*VCPU) MSRs(...uint32) ([]MSR, error)            { return nil, unsupported("MSRs") }
func (*VCPU) SetMSRs(...MSR) error                     { return unsupported("SetMSRs") }
func (*VCPU) CPUID() ([]CPUIDEntry, error)             { return nil, unsupported("CPUID") }
func (*VCPU) SetCPUID([]CPUIDEntry) error              { return unsupported("SetCPUID") }
func (*VCPU) Interrupt(uint8) error                    { return unsupported("Interrupt") }
func (*VCPU) NMI() error                               { return unsupported("NMI") }
func (*VCPU) RequestIRQWindow() error                  { return unsupported("RequestIRQWindow") }
func (*LongMode) Enter(*VCPU, Ring, GeneralRegs) error { return unsupported("Enter") }
