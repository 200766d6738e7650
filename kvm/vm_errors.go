package kvm

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels of the full VM; test for them with errors.Is.
var (
	// ErrTooManySlots says that the regions need more memory slots than there
	// are. The error names both numbers.
	ErrTooManySlots = errors.New("more memory slots than the VM has")
	// ErrSlotsLost says that a change of the memory slots failed and that the
	// slots before it could not be put back: some memory is missing from the VM until
	// an update succeeds.
	ErrSlotsLost = errors.New("memory slots are not what they were")
	// ErrUnfinished says that an instruction of the guest is half done, and the
	// vCPU has to Run before its state can be looked at or replaced.
	ErrUnfinished = errors.New("an instruction of the guest is half done")
	// ErrHostState says that this host cannot load a state; a *StateError has the
	// part and both sides.
	ErrHostState = errors.New("this host cannot load the state")
)

// StateError says which part of a saved state this host cannot load. errors.Is
// finds ErrHostState in it, and the errno if the kernel gave one.
type StateError struct {
	Part string // such as "XCR0", "MSR 0x4b564d00" or "CPUID 0x7.0 EBX"
	Want string // what the state has
	Have string // what this host offers
	Err  error  // the kernel's answer; nil if it was not asked
}

func (e *StateError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %s is %s, the host has %s", ErrHostState, e.Part, e.Want, e.Have)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns ErrHostState and the kernel's answer.
func (e *StateError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrHostState}
	}
	return []error{ErrHostState, e.Err}
}
