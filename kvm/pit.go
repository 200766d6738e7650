//go:build linux && amd64

package kvm

// createPIT is KVM_CREATE_PIT2. Port 0x61, which the speaker is on, is emulated
// with it.
func (vm *VM) createPIT() error {
	return vmIoctl(vm, "KVM_CREATE_PIT2", reqCreatePIT2, &uPITConfig{flags: pitSpeakerDummy})
}

// pit is KVM_GET_PIT2.
func (vm *VM) pit() (*PITState, error) {
	s := new(PITState)
	return s, vmIoctl(vm, "KVM_GET_PIT2", reqGetPIT2, s)
}

// setPIT is KVM_SET_PIT2.
func (vm *VM) setPIT(s *PITState) error {
	return vmIoctl(vm, "KVM_SET_PIT2", reqSetPIT2, s)
}
