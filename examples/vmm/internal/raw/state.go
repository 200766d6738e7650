//go:build linux && amd64

package raw

import (
	"slices"

	"github.com/guestmm/guestmm/kvm"
)

// load gives the machine a state: vCPUs, then what is the VM's.
func (m *Machine) load(s *kvm.MachineState) error {
	for i := range s.VCPUs {
		if err := m.vcpus[i].load(&s.VCPUs[i]); err != nil {
			return err
		}
	}
	if s.VM.IRQChips != nil {
		for i := range s.VM.IRQChips {
			if err := ioctlPtr(m.fd, setIRQChip, &irqChip{id: uint32(i), state: s.VM.IRQChips[i]}); err != nil {
				return err
			}
		}
	}
	if s.VM.PIT != nil {
		if err := ioctlPtr(m.fd, setPIT2, s.VM.PIT); err != nil {
			return err
		}
	}
	clock := kvm.ClockData{Clock: s.VM.Clock.Clock}
	return ioctlPtr(m.fd, setClock, &clock)
}

func (v *vcpu) load(s *kvm.VCPUState) error {
	list := &cpuids{n: uint32(len(s.CPUID))}
	copy(list.entries[:], s.CPUID)
	if err := ioctlPtr(v.fd, setCPUID2, list); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, setMPState, &s.MP); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, setRegs, &s.Regs); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, setSregs2, &s.Sregs); err != nil {
		return err
	}
	if len(s.XSave) > 0 {
		if err := ioctlPtr(v.fd, setXSave, &s.XSave[0]); err != nil {
			return err
		}
	}
	x := &xcrs{n: 1}
	x.xcrs[0].value = s.XCR0
	if err := ioctlPtr(v.fd, setXCRs, x); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, setDebugRegs, &s.Debug); err != nil {
		return err
	}
	if s.LAPIC != nil {
		if err := ioctlPtr(v.fd, setLAPIC, s.LAPIC); err != nil {
			return err
		}
	}
	for chunk := range slices.Chunk(s.MSRs, len(msrs{}.entries)) {
		list := &msrs{n: uint32(len(chunk))}
		copy(list.entries[:], chunk)
		if err := ioctlPtr(v.fd, setMSRs, list); err != nil {
			return err
		}
	}
	return ioctlPtr(v.fd, setEvents, &s.Events)
}

// Save reads what of a state can be read, with like as the list of its parts.
func (m *Machine) Save(like *kvm.MachineState) (*kvm.MachineState, error) {
	out := &kvm.MachineState{VCPUs: make([]kvm.VCPUState, len(like.VCPUs))}
	for i := range like.VCPUs {
		if err := m.vcpus[i].save(&out.VCPUs[i], &like.VCPUs[i]); err != nil {
			return nil, err
		}
	}
	if like.VM.IRQChips != nil {
		out.VM.IRQChips = new([3][512]byte)
		for i := range out.VM.IRQChips {
			c := irqChip{id: uint32(i)}
			if err := ioctlPtr(m.fd, getIRQChip, &c); err != nil {
				return nil, err
			}
			out.VM.IRQChips[i] = c.state
		}
	}
	if like.VM.PIT != nil {
		out.VM.PIT = new(kvm.PITState)
		if err := ioctlPtr(m.fd, getPIT2, out.VM.PIT); err != nil {
			return nil, err
		}
	}
	return out, ioctlPtr(m.fd, getClock, &out.VM.Clock)
}

func (v *vcpu) save(s, like *kvm.VCPUState) error {
	s.CPUID = slices.Clone(like.CPUID)
	if khz, err := ioctl(v.fd, getTSCKHz, 0); err == nil {
		s.TSCKHz = uint32(khz)
	}
	if err := ioctlPtr(v.fd, getMPState, &s.MP); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, getRegs, &s.Regs); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, getSregs2, &s.Sregs); err != nil {
		return err
	}
	var x xcrs
	if err := ioctlPtr(v.fd, getXCRs, &x); err != nil {
		return err
	}
	s.XCR0 = x.xcrs[0].value
	s.XSave = make([]byte, len(like.XSave))
	if err := ioctlPtr(v.fd, getXSave2, &s.XSave[0]); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, getDebugRegs, &s.Debug); err != nil {
		return err
	}
	if like.LAPIC != nil {
		s.LAPIC = new([1024]byte)
		if err := ioctlPtr(v.fd, getLAPIC, s.LAPIC); err != nil {
			return err
		}
	}
	for chunk := range slices.Chunk(like.MSRs, len(msrs{}.entries)) {
		list := &msrs{n: uint32(len(chunk))}
		copy(list.entries[:], chunk)
		if err := ioctlPtr(v.fd, getMSRs, list); err != nil {
			return err
		}
		s.MSRs = append(s.MSRs, list.entries[:len(chunk)]...)
	}
	return ioctlPtr(v.fd, getEvents, &s.Events)
}
