// Package pager serves page faults: guests whose memory is not there yet, such
// as restored from a snapshot, run at once, and each page comes when it is
// touched, or a little before.
//
// # The model
//
// A [Server] serves [Guest]s. A guest has one userfaultfd, [Region]s of its
// memory that say where in an image each page is, and a [Source] that reads the
// image. Per guest one goroutine reads events. What the source has at hand it
// installs at once; everything else goes to workers that all guests share: each
// guest has one that nobody can take from it, and the rest goes round by turns.
// So a slow read holds up its own page and nothing else, and memory is bounded
// by the number of workers.
//
// [Fill] installs ahead of the guest: first a recorded [WorkingSet], as a set,
// then everything; when all is there the pager unregisters the memory and goes.
// [StartRestore] has that done for a guestmem.Memory and a snapshot file;
// [RestoreNow] reads and checks the whole file before the guest runs.
// [Choose] says how the pages should get there: copied, mapped from a [Cache]
// that clones of one image share, or not by a pager at all.
//
// # Pages
//
//	          claim              settle
//	absent ───────────► filling ────────► present
//	   │  ◄───────────     │                 │
//	   │    give back      │                 │   REMOVE, UNMAP,
//	   └──────────────► removed ◄────────────┘   known to be zero
//
// A fault on an absent page claims it. One on a page being filled is dropped:
// its install wakes everybody, and so does giving the claim back. One on a
// removed page is answered by zeroes, always: removed is final. One on a page
// that is present is answered by zeroes if it has gone, since then the guest has
// made it so without our being told, and is woken if it is there. armed is a
// mark on a page that is there, or a wish for one that is not.
//
// Zeroes are only ever the content of a page. No error leads to them: a page
// that cannot be read, a fault outside of every region, a server that ends, all
// lead to the guest's [Policy], and its descriptor stays open until it is certain
// that nobody can see what comes after.
//
// # Snapshots of memory that is served
//
// A mapping has one userfaultfd, so live snapshots arm through the pager's (see
// guestmem.Armer), in regions of [ArmForSnapshots]. The pager protects what is there,
// notes the wish for what is not, installs such pages armed, and hands writes to
// armed pages over to the Memory, which disarms them. The memory is let go of once
// no snapshot lacks pages of it.
//
// # Traps
//
// What the kernel does that servers of page faults get wrong, what is done about
// it here, and the test that fails without it. Package uffd has the others.
//
//	 2  EAGAIN outlasts the event           retried every 250 µs               TestTrap02...
//	 3  a page exists: who lost sleeps      everybody is woken                 TestTrap03ExistingPageIsWoken
//	    range or process gone               no success; claims given back      TestTrap03...
//	 4  zeroes, protected in a second step  copied from zeroes, armed at once  TestTrap04...
//	 5  arming skips what is not there,     the wish is noted with the page,
//	    and an install drops it             and each install follows it        TestTrap05...
//	 6  a read under KVM faults as a write  every missing fault is one         TestTrap06...
//	 9  huge pages round a small one        none in caches and in slots        TestTrap09...
//	13  plain loads hang with the server    system calls, numbers, aliases     TestTrap13...
//	14  locks that nest with madvise        none but the gate, never waiting   TestTrap14...
//	15  the same page again and again       counted by page, until it comes    TestTrap15...
//	    hugetlb: EEXIST of an empty pool    the page stays absent              TestTrap15EmptyPoolIsNoPage
//
// # Locks
//
// What is indented is taken while holding what it hangs from. What stands at
// the left margin is taken with nothing held.
//
//	filler.mu
//	├─ gate, shared
//	└─ Guest.mu
//	gate, shared                    an install and its record; a claim
//	├─ progress.mu                  how often a page did not come
//	└─ Guest.mu, fetchers.mu, waiter.mu, as below
//	gate, exclusive                 read of events and their marks; who owns the ledger;
//	│                               what is to be armed
//	├─ Guest.mu                     why it has ended
//	├─ fetchers.mu                  a word to who fetches
//	└─ waiter.mu                    a poke
//	Server.mu                       queues, turns, who has a worker
//	Cache.mu                        waits for another guest's read
//	recorder.mu, filler.progress
//
// A Memory calls Arm, Disarm, Remove and Fetch with locks of its own held; the first
// three take the gate for a moment and wait for nobody else. The pager calls the
// Memory (Region.WriteFault, LetGo, SetFaultServer) with nothing held, by goroutines
// that no page waits for.
//
// Reading events and settling faults share no lock but the gate, and nobody
// waits with it: see ledger.
//
//	with …                  you may                              you may not
//	nothing                 read a source, call the owner,       install
//	                        sleep, wait for the cache
//	the gate, shared        install, wake, settle, claim,        read events, read a source, sleep,
//	                        give back                            call the owner, take it again
//	the gate, exclusive     read events (never blocking), mark,  install, anything else
//	                        change the layout and the owner
//	Server.mu               push and pop jobs                    make a system call, take the gate
//
// # Go and registered memory (R10)
//
// The pager never loads from or stores to the memory that it serves, and holds
// no Go pointer into it: pages are installed by ioctl from buffers of its own,
// and a cache is written by pwrite(2). Whoever has the guest in the same process
// must keep to that: a plain load of a page that is not there stops the whole
// program at the next garbage collection.
//
// # Dying, and going on (R12)
//
// What must outlive a server is the ledger: descriptor, layout, states, and
// events taken and not acted on. Within a process it survives the death of any
// goroutine at any point, and [Guest.Detach] with [Server.TakeOver] goes on from
// it; [Takeover.Send] and [Receive] move it to another process. Faults need no
// list: the new server wakes everybody, and whoever still has no page faults
// again.
//
// A process that is killed takes its ledger along, unless it was kept in a file:
// see GuestOptions.Ledger. Then a process that holds duplicates of the file and
// of the descriptor goes on by [Recover], whichever instruction the other was
// killed at. Without the file a duplicate of the descriptor does not tell which
// pages the guest had given back, and serving on would show it the image where
// it must see zeroes. Without removal events a new server may start over from
// the duplicate, as if every page were absent: what is there says so. With them,
// the guest has to be failed.
//
// # What it does not do
//
//   - It makes no userfaultfd and registers nothing: package uffd does, or the
//     process that sends the descriptor.
//   - It poisons no page of a guest: under KVM that kills the embedder's process.
//     Only forked children that nobody serves are ended so. A Restore that fails,
//     or is closed before its end, makes the mapping inaccessible instead: EFAULT to
//     vCPUs, before Fail is called and before the descriptor is closed.
//   - It keeps nothing across the death of its process but the file of a
//     ledger, and that not where memory had moved or forked, nor for regions of
//     ModeContinue. A forked child loses its descriptor with its server, and then
//     sees zeroes: refuse forks, or end the child, where a server can be killed.
//   - It does not follow threads that unmap and move memory at once in every order
//     in which the kernel may tell of that. A guest whose memory moves to where other
//     memory is still served, for want of the event between, ends by ErrStrayEvent.
//   - It follows no growth of a mapping by mremap(2), and nothing that is left
//     behind by MREMAP_DONTUNMAP: faults there are outside every region.
//   - It gives no region of ModeContinue back to the kernel where memory can be
//     given back by the guest: the mapping beneath would show the image again.
//   - It measures no latency: GuestOptions.Observe is for that.
//
// Memory of memfds should have MADV_NOHUGEPAGE: with a huge page round one small
// page that has come, KVM maps 2 MiB of which the rest is zeroes.
//
// A page of 2 MiB that somebody else has installed counts as missing, since the
// kernel answers the same when it has none to give: filling does not end then.
//
// Linux 4.11 for events, 4.14 for reading from the page cache without waiting,
// 5.3 for pidfds, 5.7 for arming, 5.14 for ModeContinue. Other systems answer
// ErrNotSupported.
package pager
