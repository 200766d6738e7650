//go:build linux && amd64

package kvm

// host is what this host's KVM offers to full VMs.
type host struct {
	cpuid          []CPUIDEntry // KVM_GET_SUPPORTED_CPUID
	msrs           []uint32     // KVM_GET_MSR_INDEX_LIST
	slots          int          // KVM_CAP_NR_MEMSLOTS
	dirtyRing      int          // bytes, 0: there is none
	manualDirtyLog int          // flags
	readOnlyMem    bool
	sregs2         bool
	tripleFault    bool
	tscControl     bool
	tscDeadline    bool
}

func (s *System) askHost(supported *uCPUID) (host, error) {
	h := host{
		slots:          s.extension(capNRMemslots),
		dirtyRing:      s.extension(capDirtyRing),
		manualDirtyLog: s.extension(capManualDirtyLog),
		readOnlyMem:    s.extension(capReadOnlyMem) != 0,
		sregs2:         s.extension(capSregs2) != 0,
		tripleFault:    s.extension(capTripleFault) != 0,
		tscControl:     s.extension(capTSCControl) != 0,
		tscDeadline:    s.extension(capTSCDeadline) != 0,
	}
	for _, e := range supported.entries[:supported.n] {
		h.cpuid = append(h.cpuid, CPUIDEntry{
			Function: e.function, Index: e.index, Flags: e.flags, EAX: e.eax, EBX: e.ebx, ECX: e.ecx, EDX: e.edx,
		})
	}
	list := &uMSRList{n: maxMSRs}
	_, err := ioctlPtr(s.fd, reqGetMSRIndexList, list)
	if err != nil { // E2BIG: more than maxMSRs, several times what any KVM has
		return h, opError("KVM_GET_MSR_INDEX_LIST", err)
	}
	h.msrs = append(h.msrs, list.indices[:min(list.n, maxMSRs)]...)
	return h, nil
}
