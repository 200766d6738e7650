// Package guestmem manages the memory of guests inside the process of their
// hypervisor or sandbox.
//
// The model, from below:
//
//   - A Memory is guest-physical memory: frames of one sealed memfd, mapped
//     twice, once for Go code (the alias) and once for memory slots.
//   - An AddressSpace is the memory of one guest process: areas (VMAs) over
//     frames. Its page table is a real x86-64 page table in frames of the same
//     Memory: Go code walks it without a lock, and a vCPU with CR3 at Root walks
//     the same one. Nobody keeps a second copy in step.
//   - Lookups (ReadAt, WriteAt, loads and stores, Fault, Pin) run in read
//     sections of the epoch reclaimer and only add. Changes (Unmap, Protect,
//     Discard, Fork, Map over something) take away: one at a time in each address
//     space, and they wait for the sections that had begun.
//   - Fork is O(1): both sides lead to the same tables, read-only; the first
//     write below makes the path of tables that it needs and copies one frame.
//   - An Object is pages that several areas map: a file's, or those of a shared
//     anonymous area.
//   - A View is whoever else translates, such as vCPUs (package kvm).
//
// Lock order, outermost first; nothing here is held across I/O.
// Who is refused by the door waits with no more than a change lock:
//
//	change lock                 one change at a time in an address space; of several, by id
//	└─ Memory.windows           one window (check, snapshot) at a time; waits for sections
//	   ├─ Memory.mu             lists of spaces and objects; nothing is called under it
//	   ├─ pinSet.mu             pins; fork takes it after its grace period
//	   └─ epoch slot held       refill, flush; taken before the tables mutex, so that
//	      │                     whoever has the mutex never waits for a slot
//	      └─ tables mutex       edits above the leaves, sweeps
//	         └─ View.Stop       where live entries above the leaves change
//	            └─ read section the edit; past the door
//	cow.Pool.mu, epoch.Domain.mu are innermost and held for list work only.
//
// In this state you may:
//
//	outside of everything       anything; block; allocate; wait for the door
//	read section                walk, copy up to 64 KiB, edit leaves of an owned path by
//	                            compare-and-swap, retire; not block, allocate, lock, nest
//	read section + StartRead    trust the area until EndRead
//	change lock                 edit areas, mark them, wait for a grace period, drop what
//	                            was swept
//	tables mutex + section      edit tables (pagetable's package comment)
//
// What it does not do: it runs no guest code and knows no system calls of one
// (package kvm and the sandbox example do); file objects are mapped privately
// only.
//
// Errors are *Error over a named error, which is the errno that Linux gives to
// errors.Is. Oldest kernel: Linux 3.17 (memfd, seals); 5.14 for populating by
// MADV_POPULATE_WRITE, before that by fallocate. On other systems and
// architectures than linux/amd64 everything compiles, and NewMemory answers
// ErrNotSupported.
package guestmem
