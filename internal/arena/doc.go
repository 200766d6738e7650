// Package arena gives typed access to the frames of guest-physical memory
// through one host mapping: page-table entries by atomic loads, whole frames as
// bytes.
//
// An Arena is a base pointer, the number of its first frame and a length; every
// frame number is bounded before use, because page tables are memory that a
// guest might get to write (R14). A frame number outside reads as an absent
// entry and cannot be written.
//
// The mapping is the embedder's alias of guest memory in production and a plain
// Go slice in tests, so that the race detector sees what it can.
package arena
