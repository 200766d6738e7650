// Package familytest drives a family of address spaces through random forks,
// writes, layout changes, pins, snapshots, rollbacks and exits, beside a model
// that copies every page naively, and compares every byte and every count. It is
// for the tests of guestmem and kvm: who reads the pages, Go code or vCPUs, is the
// caller's choice.
//
// The model of an address space is an array of pages, each with what it allows and
// a pointer to its bytes. Whoever must not see another's writes has a pointer of
// its own; a pin holds the pointer, as it holds the frame.
//
// It is deterministic for a seed, and runs its operations one at a time; the
// checks of different spaces run side by side. It needs no kernel feature.
package familytest
