package guestmem

import (
	"unsafe"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// hvaOf returns the address of a host mapping.
func hvaOf(b []byte) addr.HVA {
	// SAFETY: only the number is kept; the mapping is not the collector's.
	return addr.HVA(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}
