//go:build linux && amd64

package kvm

// Clock is KVM_GET_CLOCK: the time that kvmclock shows the guest.
func (vm *VM) Clock() (ClockData, error) {
	var c ClockData
	err := vmIoctl(vm, "KVM_GET_CLOCK", reqGetClock, &c)
	return c, err
}

// SetClock is KVM_SET_CLOCK: the guest's time goes on from c.Clock, as if no
// time had passed since.
func (vm *VM) SetClock(c ClockData) error {
	// What GET says in flags is for its reader: set as they are, they would have
	// the kernel add the time between.
	c = ClockData{Clock: c.Clock}
	return vmIoctl(vm, "KVM_SET_CLOCK", reqSetClock, &c)
}
