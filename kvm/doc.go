// Package kvm runs guest threads in ring 3 of KVM vCPUs, on the address spaces
// of a guestmem.Memory. It has no guest kernel: every system call, page fault
// and other exception of a guest is an exit to the caller of Platform.Run.
//
//	System    /dev/kvm
//	Platform  a VM: one memory slot over the Memory's region, a ring 0 of one
//	          page of stubs in the upper half of every address space (root entry
//	          511), a pool of vCPUs; it is the Memory's view
//	Context   registers and vector state of one guest thread
//	Exit      what a Run returned for
//
// A vCPU walks the very page table that guestmem walks: CR3 is the space's Root.
//
// # A Run
//
//	take a vCPU      its last one if free, since that still has the vector state
//	pass the gate    wait while the space is stopped
//	load             registers by SYNC_REGS; CR3, FS and GS bases too if they changed
//	KVM_RUN          iretq to ring 3 ... a way into ring 0, whose stub exits
//	decode           registers from SYNC_REGS, RIP, RSP and RFLAGS from the frame
//	give it back
//
// A vCPU rests either in ring 0 behind the `out` of a stub, or in ring 3 where a
// kick stopped it; both can be entered again with any thread's registers. Nothing
// of the guest's decides an exit: a stub's port counts only in ring 0.
//
// # Where hosts differ
//
// The first NewPlatform of a System runs a small guest to find out; String says
// what it found.
//
//	             VT-x, AMD-V with nested paging   shadow paging (nested KVM)
//	SYSCALL      ring 0, at the stub              #PF on the stub, error 0x15
//	stale PTE    lives in TLBs: kick, reload CR3  lives in KVM: MADV_DONTNEED of the
//	                                              frame in the slot's mapping
//	freed table  the same, for every vCPU         deletion of a slot drops all
//
// The left column is built from documentation and its own tests have not run
// there; the right one is what the figures below are from.
//
// # Locks
//
//	locks of guestmem (change, tables)
//	  spareSlot.mu         one deletion of a slot at a time
//	  Platform.mu          pool, spaces, who has which vector state; for 0.1 µs, or
//	                       some 5 µs where a vCPU changes hands
//	    vm.mu, System.mu   the descriptor
//	  quarantine.mu        its list
//
// Platform.mu is not held in KVM_RUN, and neither is any lock of guestmem's, so
// who stops a space may hold all of them.
//
//	what you hold                       you may
//	a vCPU (acquire to release)         use its kvm_run, its page, its descriptor
//	... with state in, past the gate    rely on Root; be kicked at any time
//	... with state out                  nothing of the guest's; the root may change
//	a stop of the space                 change Root; edit any entry
//	stopAll                             let KVM forget tables; take back frames
//	Platform.mu                         move vector state between idle vCPUs
//
// # What a guest can do
//
// Anything that ring 3 may execute. An instruction that it may not is an
// ExitException with the vector that the processor or this KVM gives it, which is
// not the same everywhere (int 0x80 is #UD or #GP). in, out and hlt are #GP; where
// KVM lets them exit instead, RIP is at the instruction or behind it. Bits of RFLAGS
// that are not ring 3's are dropped. Compatibility mode does not exist.
//
// # What the package does not do
//
// Interrupts, timers, devices, other rings, AMX, protection keys, or debug
// registers. Dirty logging: see guestmem.
//
// # Cost
//
// On a nested, shadow-paging, two-core machine: a system call or a fault and back
// 36 µs, with another root 38, with another thread's vector state 58; to stop a
// space whose vCPU spins 22 µs, to have it run again 15; with none in the guest
// 0.05 µs; Invalidate of one frame 1 µs; a Platform 0.35 ms, the first with its
// probe 3.5 ms.
//
// Needs Linux 4.17 (SYNC_REGS) on x86-64; elsewhere every call answers
// ErrNotSupported.
package kvm
