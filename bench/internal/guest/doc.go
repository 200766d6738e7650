// Package guest puts guestmm behind the benchmark's interface: one Memory, and
// its address spaces without any vCPU.
package guest
