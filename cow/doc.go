// Package cow keeps the frames of guest memory: which are free, how many
// references each has, and whether a page may become writable now.
//
// The model:
//
//   - Every frame, data or table, has one exact count of the references to it:
//     entries of page tables, slots of objects, pins. A free frame has none.
//   - A fault takes frames from a Cache, which belongs to its epoch slot, is
//     last-in first-out (a frame just freed is still in the CPU's cache) and
//     needs no lock. Empty caches are refilled from the Pool, outside of
//     sections.
//   - The Pool has the free frames that the host backs (populated), and runs of
//     frames that it does not: never used, or given back. A run is populated by
//     one system call before any of its frames is touched, so that a host
//     without memory is an error and no SIGBUS; populated afresh, it is zero.
//   - A block is 512 frames that one 2 MiB leaf leads to. It is made of free frames
//     and becomes free frames again; its leaves are counted, and each of its frames
//     once while there are any (block.go, pool_block.go).
//   - MayWrite is the one predicate for "may this become writable now?" (R5).
//
// Lock order: Pool.mu and largeCounts.mu are innermost, and never both held;
// Pool.mu is held for list operations only, never across a system call. Counts
// and pins are atomics in the Go heap; a count too large for its atomic has a
// part aside under largeCounts.mu.
//
//	holding an epoch slot        Pool.Take, Pool.Return
//	slot held, in no section     Pool.Refill, Pool.Empty
//	anywhere outside sections    Pool.Alloc, Pool.AllocBlock, Pool.Free*, Pool.Drop{Data,Block}
//	anywhere                     Share, Drop, Exclusive, MayWrite, statistics
//
// What it does not do: it maps nothing and knows no page tables or areas.
package cow
