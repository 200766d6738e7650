// Package pagetable keeps real x86-64 page tables in guest frames: the same
// table is walked by Go code, lock-free, and by a vCPU's MMU.
//
// The model:
//
//   - A table is a persistent, path-copied tree of frames with exact counts. An
//     entry above the leaves that is writable leads to a table of this space's
//     own, which it may edit; a read-only one leads to a table that others may
//     refer to too, which is never edited. Before its first edit such a table
//     is copied (count above 1) or moved to a fresh frame (count 1).
//   - Lookups install and allow in leaves by compare-and-swap, inside a read
//     section; they only add.
//   - A leaf of 2 MiB leads to a block of 512 frames and is counted and shared as
//     the table would be whose place it takes; owning the path down to the leaves
//     splits it (huge.go).
//   - Taking away needs a change Token; only LockChange makes one.
//   - What an edit makes unreachable is reported as Dropped and given up later,
//     through the reclaimer or after the change's grace period.
//
// Lock order:
//
//	change lock (Token)
//	└─ tables mutex           every edit above the leaves, and leaf sweeps
//	   └─ views stopped       where a plan Replaces
//	      └─ read section     the edit itself, past the door
//
// In this state you may:
//
//	nothing                      Root
//	read section                 Translate, Find, and on an owned leaf Install, Allow, Replace
//	tables mutex                 PlanPath, NextLeaves, MovePart
//	tables mutex + section       OwnPath, InstallHuge, AllowHuge
//	token + tables mutex         PlanZap, Shrinks, PlanProtect, PlanMove
//	token + tables + section     Zap, Rezap, Protect, Share, TakeLeaves, PutLeaves, TakeTable, PutHuge
//	no reader can follow it      Drop, DropRoot
//
// Where a second translator caches entries by the frame of their table (shadow
// paging), Options.FreshPath makes every change of a live entry above the leaves
// a fresh path up to a fresh root.
//
// What it does not do: it knows no areas, allocates nothing and makes no system
// call. There are no leaves of 1 GiB.
//
// Sources: AMD64 Architecture Programmer's Manual, volume 2, chapter 5; Intel
// SDM, volume 3A, chapter 4.
package pagetable
