package uffd

import "unsafe"

// Structures of <linux/userfaultfd.h> and <linux/fs.h>.
type (
	uffdioAPI struct {
		api, features uint64
		_             uint64 // ioctls
	}
	uffdioRange struct {
		start, length uint64
	}
	uffdioRegister struct {
		uffdioRange
		mode, ioctls uint64
	}
	// uffdioInstall is struct uffdio_zeropage, _continue and _poison, which
	// differ in the name of the last field alone.
	uffdioInstall struct {
		uffdioRange
		mode uint64
		done int64
	}
	// uffdioCopy is struct uffdio_copy and uffdio_move.
	uffdioCopy struct {
		dst, src, length, mode uint64
		done                   int64
	}
	uffdioWriteProtect struct {
		uffdioRange
		mode uint64
	}
	// uffdMsg is struct uffd_msg: the union as its three words.
	uffdMsg struct {
		event uint8
		_     uint8
		_     uint16
		_     uint32
		arg   [3]uint64
	}
	pmScanArg struct {
		size, flags, start, end, walkEnd   uint64
		vec, vecLen                        uint64
		_                                  uint64 // max_pages: no limit
		inverted, mask, anyOf, returnFlags uint64
	}
	pageRegion struct {
		start, end, categories uint64
	}
)

var (
	_ [24]byte = [unsafe.Sizeof(uffdioAPI{})]byte{}
	_ [16]byte = [unsafe.Sizeof(uffdioRange{})]byte{}
	_ [32]byte = [unsafe.Sizeof(uffdioRegister{})]byte{}
	_ [32]byte = [unsafe.Sizeof(uffdioInstall{})]byte{}
	_ [40]byte = [unsafe.Sizeof(uffdioCopy{})]byte{}
	_ [24]byte = [unsafe.Sizeof(uffdioWriteProtect{})]byte{}
	_ [32]byte = [unsafe.Sizeof(uffdMsg{})]byte{}
	_ [96]byte = [unsafe.Sizeof(pmScanArg{})]byte{}
	_ [24]byte = [unsafe.Sizeof(pageRegion{})]byte{}
)
