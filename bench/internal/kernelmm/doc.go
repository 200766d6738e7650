// Package kernelmm measures the kernel's own memory manager, through the
// system calls and page faults of this process, for the rows it can answer:
// mapping, protecting, first touches and copy-on-write. Copies have no
// counterpart, and fork is left out: it would fork the Go runtime.
package kernelmm
