// Package guestmem manages the memory of guests inside the process of their
// hypervisor or sandbox.
//
// The model, from below:
//
//   - A Memory is guest-physical memory: regions with holes between, each of one
//     host backing (a sealed memfd, private or huge pages, a file, a mapping of
//     the embedder's). A region has a slot mapping, for vCPUs and devices, and where
//     its memory is shared a second one for Go code, the alias.
//   - ReadAt, WriteAt, Load and Store by guest-physical address find the region in
//     an immutable table, in a read section, and touch pages that a system call
//     has shown to be there. AddRegion and RemoveRegion publish another table;
//     a removal waits for the sections of the whole memory, then unmaps.
//   - A RegionListener (KVM's slots) is kept equal to the regions; a DirtySource
//     (KVM's log or ring) is asked at each CollectDirty; a FaultServer brings the
//     pages of a region that is restored lazily.
//   - Seal makes the regions of a paused guest a Template; its clones map it
//     privately, and the kernel copies what they write.
//   - Snapshot freezes the content of a memory that is in use: pages are
//     write-protected while vCPUs stand still, and copied into the snapshot's layer
//     before they are first written. Clone maps the layer, before it is complete too;
//     Fork is both.
//   - A memory that was made with a Size has a frame pool in its first region.
//   - An AddressSpace is the memory of one guest process: areas (VMAs) over
//     frames. Its page table is a real x86-64 page table in frames of the same
//     Memory: Go code walks it without a lock, and a vCPU with CR3 at Root walks
//     the same one. Nobody keeps a second copy in step.
//   - Lookups (ReadAt, WriteAt, loads and stores, Fault, Pin) run in read
//     sections of the epoch reclaimer and only add. Changes (Unmap, Protect,
//     Discard, Fork, Map over something) take away: one at a time in each address
//     space, and they wait for the sections that had begun.
//   - Remap moves pages by their page-table entries; it copies nothing.
//   - Fork is O(1): both sides lead to the same tables, read-only; the first
//     write below makes the path of tables that it needs and copies one frame.
//   - Private anonymous memory can come 2 MiB at a time (huge.go): one leaf, split
//     as soon as a part of it is to differ.
//   - An Object is pages that several areas map: those of a shared anonymous area; a
//     page cache over a source and a sink, which owns what the file holds while it
//     lives, and knows what has changed; or the pages themselves of a file of the
//     host, mapped where its frames are.
//   - A Monitor is a userfaultfd of an address space: areas are registered with it,
//     faults there wait for the pages that it installs, outside of sections and
//     locks, and it is told of changes that take areas or pages from it. Installs
//     are lookups: they only add, and refuse while a change is under way that the
//     monitor has not read of. Arming pages is a change.
//   - A View is whoever else translates, such as vCPUs (package kvm).
//
// Lock order, outermost first; nothing here is held across I/O.
// Who is refused by the door waits with no more than a change lock:
//
//	Memory.layout               one change of the regions, discard, seal or close; calls
//	│                           listeners and fillers
//	├─ Memory.mu                as below
//	├─ Region.pop               populating (shared), taking pages away (exclusive); waits
//	│                           for sections; the pool's GiveBack takes it too
//	│  ├─ regionPins.mu         slices held
//	│  └─ snapshots.gate        shared while an armed page is claimed; exclusive to arm.
//	│                           Also taken alone; Armers are called under it
//	└─ Region.harvest           one CollectDirty of a region; calls its sources
//	nameTable.mu                a name is given to areas
//	Object.syncing              what has changed is written to the sink, or the object cut
//	└─ Object.punching          pages are taken out of an object, or stores to them withheld, of
//	   │                        one space after the other; shared: ReadAt and WriteAt copy
//	   └─ Object.mu             counts and lengths; innermost
//	change lock                 one change at a time in an address space; of several, by id
//	└─ Memory.windows           one window (check, snapshot) at a time; waits for sections
//	   ├─ Memory.mu             lists of spaces and objects; nothing is called under it
//	   ├─ pinSet.mu             pins; fork takes it after its grace period
//	   └─ epoch slot held       refill, flush; taken before the tables mutex, so that
//	      │                     whoever has the mutex never waits for a slot
//	      └─ tables mutex       edits above the leaves, sweeps
//	         └─ View.Stop       where live entries above the leaves change
//	            └─ read section the edit; past the door
//	spaceMonitors.life          held shared in a call of a monitor, whole by Close; above the
//	                            change lock. Not held while a copy's source is read
//	Monitor.mu, spaceMonitors.mu, cow.Pool.mu, epoch.Domain.mu are innermost and held for list work only.
//
// In this state you may:
//
//	outside of everything       anything; block; allocate; wait for the door
//	Memory.layout               change regions, wait for sections; not change listeners
//	Region.pop                  populate, enter or hide pages; tell a Remover what goes, and
//	                            call a fault server for nothing else
//	read section                walk, copy up to 64 KiB, edit leaves of an owned path by
//	                            compare-and-swap, retire; not block, allocate, lock, nest
//	read section + StartRead    trust the area until EndRead
//	change lock                 edit areas, mark them, wait for a grace period, drop what
//	                            was swept
//	tables mutex + section      edit tables (pagetable's package comment)
//
// What it does not do: it runs no guest code and knows no system calls of one
// (package kvm and the sandbox example do). It registers regions with a userfaultfd of its own for live snapshots and their
// clones alone: who does so for another reason says so by SetFaultServer or
// Intercept. A memory with a frame pool can be neither sealed nor snapshotted.
//
// Errors are *Error over a named error, or *RegionError where the address is
// guest-physical; the named error is the errno that Linux gives to errors.Is.
// Oldest kernel: Linux 3.17 (memfd, seals); 5.14 for populating by
// MADV_POPULATE_WRITE, before that by fallocate, which private mappings do not
// have: regions that are mapped once need 5.14. On other systems and
// architectures than linux/amd64 everything compiles, and NewMemory answers
// ErrNotSupported.
package guestmem
