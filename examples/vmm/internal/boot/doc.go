// Package boot puts a Linux kernel into guest memory by the 64-bit boot protocol
// (Documentation/arch/x86/boot.rst): it reads a bzImage or an ELF vmlinux, and writes kernel,
// initial file system, command line, boot parameters with a memory map, and a
// table of processors and interrupts (Intel MultiProcessor Specification 1.4).
//
//	Parse      bytes of a file ──► Kernel
//	NewLayout  size of memory  ──► where RAM lies
//	Load       all of it       ──► memory, and Entry
//
// Files may be hostile: whatever is in them, there is a Kernel or a named error. It
// makes no system call and knows no KVM.
package boot
