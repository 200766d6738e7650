//go:build linux && amd64

package kvm

import (
	"sync/atomic"
	"unsafe"
)

// loadWord and storeWord access what a guest accesses at the same time.
func loadWord(b []byte) uint64 {
	// SAFETY: b is part of an arena's mapping, page-aligned and long enough.
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[0])))
}

func storeWord(b []byte, x uint64) {
	// SAFETY: as loadWord.
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&b[0])), x)
}
