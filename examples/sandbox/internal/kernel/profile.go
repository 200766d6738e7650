//go:build linux && amd64

package kernel

import (
	"fmt"
	"sync"
	"time"

	"github.com/guestmm/guestmm/examples/sandbox/internal/profile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// Every function here is called under -profile alone, but for the check that it is.

// guestTime records a Run.
func (t *Task) guestTime(exit kvm.Exit) {
	if t.k.Profile != nil {
		t.k.Profile.Add(profile.Place{Group: profile.Guest, Name: "until " + untilWhat(exit)}, exit.RunTime, 0)
	}
}

func untilWhat(exit kvm.Exit) string {
	switch exit.Kind {
	case kvm.ExitSyscall:
		return "system call"
	case kvm.ExitPageFault:
		return "page fault"
	case kvm.ExitException:
		return fmt.Sprintf("exception %d", exit.Vector)
	}
	return "kick"
}

func (t *Task) profileCall(nr uint64, took time.Duration) {
	t.k.Profile.Add(profile.Place{Group: profile.Syscalls, Name: callName(nr)}, took, 0)
}

// faultProfile serves faults one at a time: what one came to is read from the
// memory's totals before and after. Guarded by itself.
var faultProfile sync.Mutex

// profiledFault is AddressSpace.Fault, recorded.
func (t *Task) profiledFault(at addr.GVA, access guestmem.Access) error {
	faultProfile.Lock()
	defer faultProfile.Unlock()
	before := t.k.Memory.Stats()
	began := time.Now()
	err := t.space().Fault(t.call, at, access)
	took := time.Since(began)
	after := t.k.Memory.Stats()
	name := "not mapped"
	if area, ok := t.space().FindArea(at); ok {
		name = area.Name
		if name == "" {
			name = "anonymous"
		}
	}
	kind, pages := faultKind(before, after)
	if err != nil {
		kind, pages = "refused", 0
	}
	t.k.Profile.Add(profile.Place{Group: profile.Faults, Name: name, Detail: accessName(access) + " " + kind}, took, pages)
	return err
}

// faultKind says what a fault came to: that which Linux would count as the
// dearest, since pages around the one that is needed may come along.
func faultKind(before, after guestmem.MemoryStats) (kind string, pages uint64) {
	pages = after.Installed() - before.Installed()
	switch {
	case after.Copied > before.Copied:
		return "copy", pages
	case after.Zeroed > before.Zeroed:
		return "zero", pages
	case after.Filled > before.Filled:
		return "shared", pages
	case after.Reused > before.Reused:
		return "reuse", pages
	}
	return "present", 0 // somebody else was faster, or a large page was split
}

func accessName(access guestmem.Access) string {
	switch {
	case access&guestmem.Execute != 0:
		return "execute"
	case access&guestmem.Write != 0:
		return "write"
	}
	return "read"
}
