// Package workload says what the benchmarks do, once for every memory manager
// that is measured, so that two figures in one row differ by the manager and
// by nothing else.
//
//	Subject   a memory manager: guestmm, or a peer behind the same interface
//	Row       one question, such as "a map and unmap beside 1 000 areas"
//	Run       a row made ready on one subject: operations to be timed
//	Figure    what one round of timing a run came to
//
// Rows that a subject cannot answer through Subject (the kernel's) are made
// ready by the subject itself, as a Run.
//
// Serve and the types of protocol.go let another process do the same, for a
// subject that may not be linked into this one.
package workload
