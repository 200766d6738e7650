//go:build amd64 || arm64

package uffd

// ioctl numbers, computed as asm-generic/ioctl.h does: two bits of direction,
// fourteen of size, eight of type, eight of number.
const (
	dirNone  = 0
	dirWrite = 1 // user space writes, the kernel reads
	dirRead  = 2

	typeUFFD = 0xaa
	typeFS   = 'f'
	typeKVM  = 0xae
)

func ioc(dir, typ, nr, size uintptr) uintptr { return dir<<30 | size<<16 | typ<<8 | nr }

// The requests. UNREGISTER and WAKE have the wrong direction in the kernel's
// own header, and keep it.
var (
	reqNew          = ioc(dirNone, typeUFFD, 0x00, 0) // on /dev/userfaultfd
	reqRegister     = ioc(dirRead|dirWrite, typeUFFD, 0x00, 32)
	reqUnregister   = ioc(dirRead, typeUFFD, 0x01, 16)
	reqWake         = ioc(dirRead, typeUFFD, 0x02, 16)
	reqCopy         = ioc(dirRead|dirWrite, typeUFFD, 0x03, 40)
	reqZero         = ioc(dirRead|dirWrite, typeUFFD, 0x04, 32)
	reqMove         = ioc(dirRead|dirWrite, typeUFFD, 0x05, 40)
	reqWriteProtect = ioc(dirRead|dirWrite, typeUFFD, 0x06, 24)
	reqContinue     = ioc(dirRead|dirWrite, typeUFFD, 0x07, 32)
	reqPoison       = ioc(dirRead|dirWrite, typeUFFD, 0x08, 32)
	reqAPI          = ioc(dirRead|dirWrite, typeUFFD, 0x3f, 24)
	reqPagemapScan  = ioc(dirRead|dirWrite, typeFS, 16, 96)

	reqKVMCheckExtension = ioc(dirNone, typeKVM, 0x03, 0)
)

// Modes of the requests.
const (
	apiVersion = 0xaa

	modeDontWake        = 1 << 0 // of COPY, ZEROPAGE, CONTINUE, MOVE, POISON
	modeArmed           = 1 << 1 // of COPY, CONTINUE
	modeAllowHoles      = 1 << 1 // of MOVE
	modeProtect         = 1 << 0 // of WRITEPROTECT
	modeProtectDontWake = 1 << 1 // of WRITEPROTECT

	userModeOnly = 1 // of userfaultfd(2) and of the device
)
