// Package machine is the built-in guest as the VMM has it: its memory, VM and
// vCPUs, what it is told to do, and a model of what it has written, with which
// harvests of dirty pages are compared.
//
//	Layout   where its regions lie, for an amount of memory
//	Guest    a memory and a VM with two vCPUs that wait at their doorbells
//	Model    how often each page was written, from the guest's ledgers
//	Tally    what harvests missed, or told of without reason
//
// A command runs on a goroutine of its own until the vCPU rings again. Between
// commands nothing of the guest runs, and its memory can be sealed.
package machine
