// Package floor measures serving page faults, through uffd and beside it by a
// program in C that does the same with nothing in between: what the kernel
// charges by itself.
//
// The program (csrc/floor.c) is compiled where it is run, by cc; without a C
// compiler its figures, and with them ours, are missing. Its faulting side is
// the guest of both: memory that is touched page by page, by plain loads and
// stores in a process of its own, which times itself. A Go process cannot do
// that (see package uffd), and a different faulting side would be a different
// question.
//
//	floor       the server is a thread in C that blocks in read(2)
//	floor-spin  as floor; it asks for 50 µs before it sleeps
//	guestmm     the server is a uffd.Waiter in this process
package floor
