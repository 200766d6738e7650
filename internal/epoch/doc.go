// Package epoch is the reclaimer: it tells when memory that has been made
// unreachable is no longer being read.
//
// A reader announces a read section by storing a word into its own slot and
// clears it when it leaves. Whoever takes something away first makes it
// unreachable and then looks at the slots: a section that could still reach it
// is one of those it finds open. There is no global epoch counter, so a reader
// writes no cache line but its own.
//
//	Domain     the slots, and what waits to be reclaimed
//	Reader     one slot: owned (a vCPU's handle) or pooled (for one call)
//	Enter/Exit begin and end a read section of one space
//	Barrier    wait until every section of one space that had begun has ended
//	Retire     hand over an item; it is reclaimed once no section that had begun
//	           before its batch was closed is open any more; nobody waits
//
// Why it is enough. Enter's store, the removal (an atomic store or
// read-modify-write of the caller's) and the slot loads here are sequentially
// consistent, as all of Go's sync/atomic operations are. So either the reader's
// loads come after the removal and miss the item, or its Enter came before the
// loads of the slots, and the section is waited for. A slot's word carries a
// count, so that a section begun later in the same slot is not mistaken for the
// one waited for.
//
// States of a slot's word:
//
//	0                     free: anybody may take it by compare-and-swap
//	1                     held, but in no section (refilling, flushing)
//	space<<32 | count     in a read section of that space
//
// What a section may not do: allocate, lock, log, call out, nest, do I/O, or
// last long; a change of the same space waits for it. Under invariants,
// AssertOutside panics in every place where a section must not be.
//
// Oldest kernel: none needed; the package makes no system call.
package epoch
