// Package kernel is the personality that a sandboxed program sees: Linux's
// system calls, processes and signals, on top of guestmem (what is where in
// memory) and kvm (what runs).
//
//	Process ──► mm ──► guestmem.AddressSpace     shared by CLONE_VM, by vfork until exec
//	   │        signal actions
//	   └─► Task ──► kvm.Context                  one goroutine each
//	            files, directory                 shared with other tasks or not
//
// A Task's goroutine is its kernel thread. It loops: deliver signals, run ring
// 3 until something happens, deal with it. A call that has to wait sleeps on a
// channel beside the task's own wake channel, so that a signal or the end of
// the process interrupts whatever it waits for. Nobody else touches a task's
// registers.
//
// What threads have apart (registers, mask, pending set, alternate stack, robust
// list, wake channel) is in Task, and what they share in Process. Its address
// space changes hands only while it has one task, which is why its tasks read
// that field without a lock; thread.go has the rules. A task's table of
// descriptors and directory are changed by itself alone.
//
// Every address, length and index comes from a hostile program. Guest memory
// is reached through AddressSpace.ReadAt and WriteAt alone, which answer
// EFAULT; lengths are capped before anything is allocated for them; what a
// guest may own of the host (processes, threads, descriptors, pipes, bytes in /tmp,
// queued signals) is bounded.
//
// Locks, outermost first:
//
//	Kernel.mu      processes, their relations, states and signals
//	  (leaves)     FDTable.mu, objectCache.mu, futexes.mu, fileLocks.mu, and vfs's own
//
// Nothing blocks, and no guest memory is touched, under any of them, but for
// the words of futexes under futexes.mu (futex.go says why) and the one page of
// the clocks under timekeeper.mu, which is always there.
package kernel
