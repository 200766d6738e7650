// Package machine measures what is about whole memories, virtual machines and
// vCPUs: clones, live snapshots, a fork under a running vCPU, exits. Ours goes
// through packages guestmem and kvm. Beside it the kernel is asked by its bare system
// calls, the same ones in the order of a program that was written for this alone,
// which retries and undoes nothing.
//
// Without /dev/kvm the rows that need it are missing, and say so.
package machine
