// Package layering holds the tests that keep the shape of the library: which
// package may import which, what may be required of others, and where unsafe
// may be used. It has no code of its own.
//
//	docs, examples, bench
//	kvm  uffd/pager
//	guestmem
//	cow
//	vmarea  pagetable  uffd
//	internal/*  guestmem/addr
//
// A package imports from the lines below its own only; internal packages may
// import each other and guestmem/addr.
package layering
