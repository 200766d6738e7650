//go:build linux && amd64

package kvm

import (
	"testing"
	"time"
)

// TestPendingExceptionReachesNobodyElse interrupts a guest, makes KVM believe
// that it had an exception to deliver to it, and looks who gets it.
//
//	guest A                            VMM
//	page fault: KVM queues it
//	                                   kick: EINTR, nothing delivered
//	                                   runs guest B on the vCPU
//	                                   B gets A's fault
func TestPendingExceptionReachesNobodyElse(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(t, a, p, progSpin)
	good, b, _ := newHandGuest(t, a, p, progSyscallLoop)
	for _, tt := range []struct {
		vector uint8
		want   bool
	}{{vectorPF, false}, {vectorGP, false}, {vectorUD, false}, {vectorBP, false}, {vectorDB, true}} {
		var v *vcpu
		for tries := 0; ; tries++ {
			time.AfterFunc(time.Millisecond, c.Kick)
			wantExit(t, p, h, c, Exit{Kind: ExitKicked})
			if v = p.vcpus[0]; v.inUser {
				break
			}
			// On a busy machine the kick can come before ring 3 is reached.
			if tries == 100 {
				t.Fatal("the spinning guest does not rest in ring 3")
			}
		}
		events := &VCPUEvents{ExceptionInjected: 1, ExceptionNr: tt.vector}
		if tt.vector == vectorPF || tt.vector == vectorGP {
			events.ExceptionHasCode = 1
		}
		if _, err := ioctlPtr(v.fd, reqSetEvents, events); err != nil {
			t.Fatal(err)
		}
		v.completeIO() // nothing but brings kvm_run up to date
		e, done, err := v.pendingExit()
		if err != nil || done != tt.want || done && (e.Kind != ExitException || e.Vector != tt.vector) {
			t.Errorf("vector %d: %v, %v, %v", tt.vector, e, done, err)
		}
		b.Regs = Regs{RIP: uint64(codeVA)}
		wantExit(t, p, good, b, Exit{Kind: ExitSyscall})
	}
}

// TestSelectorsDoNotPassToTheNextGuest has one guest after the other load data
// segments: each begins without.
func TestSelectorsDoNotPassToTheNextGuest(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 1})
	if p.traits.syscall == byFault {
		t.Skip("this KVM runs every guest with whatever data segments the host thread has")
	}
	for range 3 {
		h, c, _ := newHandGuest(t, a, p, progSelectors)
		c.Regs.FSBase, c.Regs.GSBase = 0x1000, 0x2000
		wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
		if c.Regs.RAX != 0 || c.Regs.RBX != 0 {
			t.Errorf("a new guest has DS %#x, FS %#x", c.Regs.RAX, c.Regs.RBX)
		}
		wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
	}
}
