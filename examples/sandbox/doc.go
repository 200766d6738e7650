// Sandbox runs an unmodified x86-64 Linux program in ring 3 of a KVM
// vCPU. Every page of it is served by guestmm's areas, page tables and frames;
// its system calls are emulated in Go.
//
//	go run ./examples/sandbox -- busybox sh -c 'echo hello | wc -c'
//
// It is an example: README.md says what it isolates and what it does not.
package main
