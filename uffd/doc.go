// Package uffd binds Linux's userfaultfd(2): the faults of a range of memory are
// told to a descriptor, and who faulted waits until somebody has answered. It is
// what lazy restore, live snapshots and dirty tracking of guests are made from.
// Package uffd/pager is a server built on it.
//
//	FD        a userfaultfd: Open, FromFD; Register, Copy, Zero, Continue,
//	          WriteProtect, Move, Poison, Wake; Fill* step over what is there
//	Waiter    waits for the events of an FD: spins while that pays, then sleeps
//	Event     a fault, or a change of layout: fork, remap, remove, unmap
//	Pagemap   PAGEMAP_SCAN: what is there, what was written, and arming it again
//	HaveX     probes that try a feature; Report, all of them and the host around
//
// # Model
//
//	               touch                                  Copy, Zero, Continue
//	guest ── absent or armed page ──► event ── Read, Wait ──► server ──► page, guest goes on
//	host  ── madvise, munmap, fork ──► event ── Read ──► the caller goes on
//
// A page is absent, then present; an armed page is present and tells of its next
// write. An install of a page that is present fails with EEXIST. A change of
// layout (EventRemove and its like) waits until its event has been read; from
// before that and until the thread that made it runs again, installs fail with
// EAGAIN and install nothing (R9).
//
// Every call that installs returns how many bytes from the start it has dealt
// with, and an error unless that is all. No call waits for anything but the
// kernel's own locks, and none tries anything again that has made no progress:
// EAGAIN is the caller's to pace.
//
// # What Go code may touch
//
// A plain load or store of a page that is absent or armed parks the thread while
// the Go runtime believes that it runs: the next garbage collection never
// ends (R10). So this package deals in addresses (addr.HVA), never in slices of
// registered memory, and its tests reach it by system calls.
//
// # Traps
//
// What handlers get wrong, what is done about it here, and the test that fails
// without it. Traps that are not listed are for who serves: see uffd/pager.
//
//	 1  "nothing done" is 0 or -EAGAIN      progress takes neither for bytes     TestTrap01...
//	 3  a page that exists: who lost sleeps  Fill wakes it                        TestFillWakesWhoWaitsForAPageThatIsThere
//	    the process is gone                  ESRCH is an error, with 0 done       TestProcessGone
//	    hugetlb: EEXIST of an empty pool     said by Copy; uffd/pager guards      TestTrap15Hugetlb...
//	 4  ZEROPAGE, then arming: lost writes   Zero with Armed copies zeroes armed  TestTrap04...
//	 5  arming where it cannot be            EINVAL, ENOENT; FeatureWPUnpopulated TestTrap05...
//	 7  a page exists in the middle          Fill goes on after it, counts both   TestTrap07...
//	 8  swapped pages look absent            Populated asks PAGEMAP_SCAN          TestTrap08...
//	10  files on disk cannot be armed;       EINVAL from Register;                TestTrap10...
//	    other mappings are not trapped       register the writer's
//	11  /proc/self/mem is no way in          populate, process_vm_readv           TestTrap11...
//	12  EPERM from the system call           the device first, both are reported  TestTrap12...
//
// And of trap 6: FaultWrite says how a page is wanted, not that it was written;
// KVM may want to write what its guest reads.
//
// # Locks
//
// A descriptor is counted by who is in a call on it, and closed by Close or the
// last of them. FD.mu guards the list of Waiters to be woken by Close, and is
// held across a write to an eventfd and nothing else; no lock is taken while it
// is held, and no call holds two. A Waiter is one goroutine's; Nudge and Close
// are anybody's.
//
//	you are in           you may
//	no call              Close, and use it in any other way at once
//	Wait, Read           be closed under: ErrClosed
//	between two events   call anything; nothing is held for you
//
// # What it does not do
//
// It does not decide what a page holds, keep page states, or retry with a pace.
// It does not say when a process ends: a userfaultfd has no such event
// (Waiter.WatchPeer watches a pidfd). Closing the last descriptor lets everybody
// go on into zeroes: keep a Dup (R12).
//
// # Oldest kernels
//
// Linux 4.3 on amd64 and arm64; each call and feature names its own. On other
// systems and architectures every call answers ErrNotSupported.
package uffd
