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

// wordIn returns the aligned 64-bit word around offset off of a host mapping.
func wordIn(b []byte, off uint64) wordRef {
	w := b[off&^7 : off&^7+8]
	// SAFETY: w is 8 bytes of b, aligned since mappings begin on a page.
	p := unsafe.Pointer(unsafe.SliceData(w))
	return wordRef{(*[2]uint32)(p), (*uint64)(p), off & 7}
}

// allZero reports whether a page, or any whole number of words, is zero.
func allZero(b []byte) bool {
	// SAFETY: the words lie in b, which is aligned as heap buffers and mappings are.
	for _, w := range unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8) {
		if w != 0 {
			return false
		}
	}
	return true
}
