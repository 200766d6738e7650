// Package vmarea keeps the areas (VMAs) of a guest's address space: which
// addresses are mapped, with what permissions, from what. Lookups take no lock
// and wait for nobody; one change at a time edits a copy and publishes it; a
// fork shares everything in constant time. It makes no system call, and knows
// neither page tables nor frames.
//
// # Model
//
//	Tree ── state       sequence, and whether the whole tree is marked  atomic
//	     ── published ► view: B-tree and up to 8 differences, immutable atomic
//	     ── edited      that view, but for a change's edits             change lock
//	     ── holes       what is free, and the longest hole per subtree  change lock
//	     ── Change      the edits that are not published yet            change lock
//	Area ── range, traits (permissions, flags, backing, watch), owner   immutable
//	     ── lockSeq     equal to the owner's sequence: marked           atomic
//
// A change marks the areas that it takes something away from, by storing the
// tree's sequence into them, publishes new areas in their place, and then
// increments the sequence, which unlocks everything at once. StartRead loads
// the sequence first, the tree second, the area third, and refuses what is
// marked (R2). What is guaranteed: no lookup whose read section began after
// the mark passes. One that began before may, and the change waits for it:
// that grace period is the caller's, since this package knows no epoch.
//
// After a fork the child's tree holds area objects of its parent's tree. It
// refuses them (Foreign) and adopts a copy of each at its first fault there.
//
// # Lock order
//
//	the space's change lock              one change at a time per tree
//	  └─ cloning                         of trees that descend from one another: about 100 ns
//	  └─ (fork) nothing of the child: nobody has seen it yet
//	read section                         takes no lock inside
//
// # What each state allows
//
//	                               no lock   read section   change lock
//	Tree.Snapshot, Snapshot.*      yes       yes            yes
//	Tree.StartRead, EndRead        no        yes            no, leave it first
//	area fields                    yes       yes            yes
//	"this area is not changing"    no        Found..EndRead yes
//	Tree.StartChange, Change.*     no        no             yes
//	Tree.CheckInvariants           no        no             yes
//
// "area fields" of an area from a snapshot say what was published; they never
// change. That no change is under way holds only between StartRead and
// EndRead, or under the change lock.
//
// A change, in the order of R1:
//
//	c := t.StartChange()      // lock held
//	c.SetProt(r, p)           // edit; Len too large: c.Abort()
//	c.StartWrite(r)           // mark
//	…                         // sweep, grace period, sweep
//	c.Publish()
//	c.EndWriteAll()           // unmark
//
// # What it does not do
//
// It does not wait for readers or changes: grace periods and the change lock are
// the caller's. It does not limit the number of areas, merge across backings
// that are equal but not the same pointer, or know what flags mean. Areas and
// index nodes are left to the garbage collector. Trees that descend from one
// another by fork share a base, whose clones a mutex orders (cloning), and a short
// free list of index nodes, which has one too; only changes take them.
//
// It needs nothing of a kernel.
package vmarea
