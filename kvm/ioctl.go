//go:build linux && amd64

package kvm

// ioctl numbers, computed as asm-generic/ioctl.h does: two bits of direction,
// fourteen of size, eight of type, eight of number.
const (
	dirNone  = 0
	dirWrite = 1 // user space writes, the kernel reads
	dirRead  = 2

	kvmIO = 0xae
)

func ioc(dir, nr, size uintptr) uintptr { return dir<<30 | size<<16 | kvmIO<<8 | nr }

// The requests. The size is that of the fixed part of the structure, as the
// kernel's own macros have it.
var (
	reqGetAPIVersion   = ioc(dirNone, 0x00, 0)
	reqCreateVM        = ioc(dirNone, 0x01, 0)
	reqCheckExtension  = ioc(dirNone, 0x03, 0)
	reqGetVCPUMmapSize = ioc(dirNone, 0x04, 0)
	reqGetSupportedCPU = ioc(dirRead|dirWrite, 0x05, 8)
	reqCreateVCPU      = ioc(dirNone, 0x41, 0)
	reqSetMemoryRegion = ioc(dirWrite, 0x46, 32)
	reqSetTSSAddr      = ioc(dirNone, 0x47, 0)
	reqRun             = ioc(dirNone, 0x80, 0)
	reqSetRegs         = ioc(dirWrite, 0x82, 144)
	reqGetSregs        = ioc(dirRead, 0x83, 312)
	reqSetSregs        = ioc(dirWrite, 0x84, 312)
	reqSetMSRs         = ioc(dirWrite, 0x89, 8)
	reqSetCPUID2       = ioc(dirWrite, 0x90, 8)
	reqSetMPState      = ioc(dirWrite, 0x99, 4)
	reqSetEvents       = ioc(dirWrite, 0xa0, 64)
	reqSetDebugRegs    = ioc(dirWrite, 0xa2, 128)
	reqGetXSave        = ioc(dirRead, 0xa4, 4096)
	reqSetXSave        = ioc(dirWrite, 0xa5, 4096)
	reqSetXCRs         = ioc(dirWrite, 0xa7, 392)
	reqGetXSave2       = ioc(dirRead, 0xcf, 4096)
)
