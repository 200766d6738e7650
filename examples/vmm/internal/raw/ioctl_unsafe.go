//go:build linux && amd64

package raw

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

func ioc(dir, nr, size uintptr) uintptr { return dir<<30 | size<<16 | 0xae<<8 | nr }

const (
	none, wr, rd = 0, 1, 2
)

var (
	createVM        = ioc(none, 0x01, 0)
	vcpuMmapSize    = ioc(none, 0x04, 0)
	createVCPU      = ioc(none, 0x41, 0)
	getDirtyLog     = ioc(wr, 0x42, 16)
	setMemoryRegion = ioc(wr, 0x46, 32)
	setTSSAddr      = ioc(none, 0x47, 0)
	setIdentityMap  = ioc(wr, 0x48, 8)
	createIRQChip   = ioc(none, 0x60, 0)
	getIRQChip      = ioc(rd|wr, 0x62, 520)
	setIRQChip      = ioc(rd, 0x63, 520)
	createPIT2      = ioc(wr, 0x77, 64)
	setClock        = ioc(wr, 0x7b, 48)
	getClock        = ioc(rd, 0x7c, 48)
	runVCPU         = ioc(none, 0x80, 0)
	getRegs         = ioc(rd, 0x81, 144)
	setRegs         = ioc(wr, 0x82, 144)
	getMSRs         = ioc(rd|wr, 0x88, 8)
	setMSRs         = ioc(wr, 0x89, 8)
	getLAPIC        = ioc(rd, 0x8e, 1024)
	setLAPIC        = ioc(wr, 0x8f, 1024)
	setCPUID2       = ioc(wr, 0x90, 8)
	getMPState      = ioc(rd, 0x98, 4)
	setMPState      = ioc(wr, 0x99, 4)
	getPIT2         = ioc(rd, 0x9f, 112)
	getEvents       = ioc(rd, 0x9f, 64)
	setPIT2         = ioc(wr, 0xa0, 112)
	setEvents       = ioc(wr, 0xa0, 64)
	getDebugRegs    = ioc(rd, 0xa1, 128)
	setDebugRegs    = ioc(wr, 0xa2, 128)
	enableCap       = ioc(wr, 0xa3, 104)
	getTSCKHz       = ioc(none, 0xa3, 0)
	setXSave        = ioc(wr, 0xa5, 4096)
	getXCRs         = ioc(rd, 0xa6, 392)
	setXCRs         = ioc(wr, 0xa7, 392)
	clearDirtyLog   = ioc(rd|wr, 0xc0, 24)
	resetRings      = ioc(none, 0xc7, 0)
	getSregs2       = ioc(rd, 0xcc, 320)
	setSregs2       = ioc(wr, 0xcd, 320)
	getXSave2       = ioc(rd, 0xcf, 4096)
)

// The kernel's structures that package kvm does not export.
type (
	memoryRegion struct {
		slot, flags    uint32
		gpa, size, hva uint64
	}
	dirtyLog struct {
		slot, _ uint32
		bitmap  uint64
	}
	clearLog struct {
		slot, nPages  uint32
		first, bitmap uint64
	}
	dirtyGFN struct {
		flags, slot uint32
		offset      uint64
	}
	capability struct {
		number, _ uint32
		args      [4]uint64
		_         [64]byte
	}
	irqChip struct {
		id, _ uint32
		state [512]byte
	}
	pitConfig struct {
		flags uint32
		_     [15]uint32
	}
	xcrs struct {
		n, _ uint32
		xcrs [16]struct {
			_, _  uint32 // number, which is 0; padding
			value uint64
		}
		_ [16]uint64
	}
	msrs struct {
		n, _    uint32
		entries [256]kvm.MSR
	}
	cpuids struct {
		n, _    uint32
		entries [256]kvm.CPUIDEntry
	}
)

// Each line compiles only if the size is the kernel's.
var (
	_ [32]byte  = [unsafe.Sizeof(memoryRegion{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(dirtyLog{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(clearLog{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(dirtyGFN{})]byte{}
	_ [104]byte = [unsafe.Sizeof(capability{})]byte{}
	_ [520]byte = [unsafe.Sizeof(irqChip{})]byte{}
	_ [64]byte  = [unsafe.Sizeof(pitConfig{})]byte{}
	_ [392]byte = [unsafe.Sizeof(xcrs{})]byte{}
	_ [8]byte   = [unsafe.Offsetof(msrs{}.entries)]byte{}
	_ [8]byte   = [unsafe.Offsetof(cpuids{}.entries)]byte{}
)

// ioctl makes a request whose argument is a number.
func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, fmt.Errorf("ioctl %#x: %w", req, errno)
	}
	return int(n), nil
}

// ioctlPtr makes a request whose argument is a structure.
func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: arg is live for the call, and of the type that the request names.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return fmt.Errorf("ioctl %#x: %w", req, errno)
	}
	return nil
}

// addressOf returns the address of memory that is mapped, or of a slice that is
// pinned.
func addressOf[T any](b []T) uint64 {
	// SAFETY: only the number is used.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}

// ringOf views the mapping of a dirty ring.
func ringOf(mem []byte) []dirtyGFN {
	// SAFETY: a mapping is page-aligned, and the kernel's entries fill it.
	return unsafe.Slice((*dirtyGFN)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/16)
}

// wordAt views a word of a mapping.
func wordAt(mem []byte, off int) *uint32 {
	_ = mem[off+3]
	// SAFETY: off is a multiple of 4 within the mapping, as the line above checks.
	return (*uint32)(unsafe.Pointer(&mem[off]))
}
