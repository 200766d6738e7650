// Package kvm binds KVM to the memory of package guestmem, in two ways that have
// the device, the ioctls and the structures in common and nothing else:
//
//	Platform  guest threads in ring 3, without a guest kernel, on the address
//	          spaces of a Memory: for sandboxes
//	VM        a whole virtual machine over the regions of a Memory, with devices
//	          in the kernel, dirty tracking, and all of its state: for VMMs
//
// # Part one: ring 3
//
// Every system call, page fault and other exception of a guest is an exit to the
// caller of Platform.Run.
//
//	System    /dev/kvm
//	Platform  a VM: memory slots over the Memory's regions, a ring 0 of one
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
// Where SYSCALL does not reach ring 0, a guest can be given it: with
// PlatformOptions.SyscallEntry it leads to code of the guest's own, which answers
// in 1 µs what costs an exit of 38, and makes the exit for the rest by a jump to
// SyscallGate.
//
// The left column is built from documentation and its own tests have not run
// there; the right one is what the figures below are from.
//
// # Locks
//
//	locks of guestmem (change, tables)
//	  Platform.healing     one mustZap or heal at a time
//	    spareSlot.mu       one deletion of a slot at a time
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
// probe 1.5 to 2 ms.
//
// # Part two: a whole VM
//
//	System.NewVM ──► VM ──NewVCPU──► VCPU ──Run──► VCPUExit
//	                 │ ▲
//	Memory ─regions──┘ └─pages that vCPUs wrote──► Memory.CollectDirty
//
// The files follow the kernel's objects:
//
//	machine.go, _options, _gate      the VM: creation, Pause and Resume, Close
//	machine_vcpu.go, _run, _kick     a vCPU: Run, its exits (vmexit.go), kicks
//	slots.go, slots_vm.go            SlotTable: slots equal to the regions, for a VM
//	                                 of this package, a descriptor, or any SlotSetter
//	dirty.go, dirtylog.go,           what vCPUs wrote, by log or by ring
//	dirtyring.go, _reset,
//	dirtyset.go
//	tracker.go, tracker_choose.go    which way to know of them costs least here
//	vcpu_access.go, msrs.go          the parts of a vCPU's state, one by one
//	vcpu_state.go, vcpu_check.go     all of it: State and SetState
//	irqchip.go, pit.go, clock.go,    devices in the kernel
//	interrupts.go
//	machine_snapshot.go,             the whole machine: Save and Load; its encoding
//	machine_state.go, state_encode.go
//	cpuid_policy.go, cpuid_vm.go     what the guest is shown
//	guestmemfd.go                    memory that belongs to the VM
//	longmode.go                      tables for a guest without a boot loader
//
// A VM comes up in this order: memory, NewVM (slots before the interrupt
// controllers, which makes them 30 times as cheap), vCPUs, and for a saved guest
// Load, which sets vCPUs before interrupt controllers.
//
// An exit that asks for something (a read by port or MMIO) is answered by filling
// its Data; whoever runs the vCPU on, or looks at its state, has KVM finish the
// instruction with it. State is always that between two instructions.
//
// Slots are a function of the regions. Neighbours on both sides share one, so a
// change of regions may have to replace a slot under vCPUs that use it; they are
// paused for that time, and never see memory missing that stays. A vCPU that touches memory
// which goes gets an MMIO exit. With dirty tracking they are paused for a removal, too: what
// they wrote there is still known if somebody else refuses it.
//
// Locks of a VM, from the outside in; what Memory calls comes with the Memory's
// own layout lock:
//
//	Memory's layout lock
//	  SlotTable.mu         one update at a time; Pause is called under it
//	    VM.life (shared)   the descriptor stays open
//	      VM.mu            the list of vCPUs
//	      dirtyTracker.mu  slots, pending pages, rings
//	      memfdTable.mu
//	VCPU.mu                a Run, but while it waits at the gate; a state method
//	  VM.life, dirtyTracker.mu   to make room in a ring
//	  VCPU.poking          the mapping of kvm_run, for who stores into it from outside
//	  vmGate.mu            who waits for whom; nothing is taken under it
//
//	what you hold            you may
//	nothing                  Kick, Pause, Resume, change regions, harvest, Close
//	a Run (your goroutine)   nothing else with that vCPU
//	a Pause                  look at and replace the state of every vCPU; seal, copy,
//	                         change regions; not wait for a vCPU's next exit
//	an exit to be answered   the same; the vCPU counts as out of the guest
//
// What it does not do: nested virtualization state, AMX, SMM address spaces, Xen
// and Hyper-V exits (raw, as VMExitUnknown), private memory of confidential guests, GSI
// routing. EnableCap is the way to the rest.
//
// Cost, on the same machine: exit and back from ring 3 by port or MMIO 66 µs, from ring
// 0 8 µs; a harvest of 1 GiB with nothing dirty 16 µs by log and 0.2 µs by ring, with 100
// pages 94 and 57.
//
// # Versions
//
// Needs Linux 4.17 (SYNC_REGS) on x86-64; a dirty ring 5.11, SREGS2 5.14,
// guest_memfd 6.18, and what lacks is said by name; elsewhere every call answers
// ErrNotSupported.
package kvm
