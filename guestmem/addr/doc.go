// Package addr holds the address types of guestmm, so that the levels of
// translation cannot be mixed up: a guest-virtual address is not a
// guest-physical one, and neither is a host address.
//
//	GVA  guest-virtual   what a guest program uses
//	GPA  guest-physical  what a page table leads to; PFN is its page number
//	HVA  host-virtual    where the host has that memory mapped
//
// Ranges are half-open and of guest-virtual addresses, which is where the
// library takes ranges from its callers. Arithmetic that a guest can influence
// returns (result, ok); ok is false on overflow.
package addr
