//go:build linux && amd64

package kvm

// The requests that only a full VM makes.
var (
	reqGetMSRIndexList  = ioc(dirRead|dirWrite, 0x02, 4)
	reqGetDirtyLog      = ioc(dirWrite, 0x42, 16)
	reqSetIdentityMap   = ioc(dirWrite, 0x48, 8)
	reqSetMemoryRegion2 = ioc(dirWrite, 0x49, 160)
	reqCreateIRQChip    = ioc(dirNone, 0x60, 0)
	reqIRQLine          = ioc(dirWrite, 0x61, 8)
	reqGetIRQChip       = ioc(dirRead|dirWrite, 0x62, 520)
	reqSetIRQChip       = ioc(dirRead, 0x63, 520)
	reqIRQFD            = ioc(dirWrite, 0x76, 32)
	reqCreatePIT2       = ioc(dirWrite, 0x77, 64)
	reqIOEventFD        = ioc(dirWrite, 0x79, 64)
	reqSetClock         = ioc(dirWrite, 0x7b, 48)
	reqGetClock         = ioc(dirRead, 0x7c, 48)
	reqGetPIT2          = ioc(dirRead, 0x9f, 112)
	reqSetPIT2          = ioc(dirWrite, 0xa0, 112)
	reqSetTSCKHz        = ioc(dirNone, 0xa2, 0)
	reqGetTSCKHz        = ioc(dirNone, 0xa3, 0)
	reqEnableCap        = ioc(dirWrite, 0xa3, 104)
	reqSignalMSI        = ioc(dirWrite, 0xa5, 32)
	reqClearDirtyLog    = ioc(dirRead|dirWrite, 0xc0, 24)
	reqResetDirtyRings  = ioc(dirNone, 0xc7, 0)
	reqCreateGuestMemfd = ioc(dirRead|dirWrite, 0xd4, 64)

	reqGetRegs      = ioc(dirRead, 0x81, 144)
	reqTranslate    = ioc(dirRead|dirWrite, 0x85, 24)
	reqInterrupt    = ioc(dirWrite, 0x86, 4)
	reqGetMSRs      = ioc(dirRead|dirWrite, 0x88, 8)
	reqGetLAPIC     = ioc(dirRead, 0x8e, 1024)
	reqSetLAPIC     = ioc(dirWrite, 0x8f, 1024)
	reqGetMPState   = ioc(dirRead, 0x98, 4)
	reqNMI          = ioc(dirNone, 0x9a, 0)
	reqGetEvents    = ioc(dirRead, 0x9f, 64)
	reqGetDebugRegs = ioc(dirRead, 0xa1, 128)
	reqGetXCRs      = ioc(dirRead, 0xa6, 392)
	reqGetSregs2    = ioc(dirRead, 0xcc, 320)
	reqSetSregs2    = ioc(dirWrite, 0xcd, 320)
)

// Flags of a memory slot (KVM_MEM_*).
const (
	memLogDirty   = 1 << 0
	memReadOnly   = 1 << 1
	memGuestMemfd = 1 << 2
)

// Exit reasons (KVM_EXIT_*) that only a full VM knows.
const (
	exitDebug         = 4
	exitIRQWindow     = 7
	exitSystemEvent   = 24
	exitIOAPICEOI     = 26
	exitDirtyRingFull = 31
	exitMemoryFault   = 39
)

// Capabilities (KVM_CAP_*) that only a full VM asks for.
const (
	capNRMemslots        = 10
	capTSCControl        = 60
	capTSCDeadline       = 72
	capReadOnlyMem       = 81
	capManualDirtyLog    = 168 // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
	capDirtyRing         = 192
	capSregs2            = 200
	capExitOnEmulation   = 204
	capTripleFault       = 218
	capUserMemory2       = 231
	capGuestMemfd        = 234
	capGuestMemfdFlags   = 244
	manualProtectEnable  = 1 << 0
	guestMemfdMmap       = 1 << 0
	guestMemfdInitShared = 1 << 1
	dirtyRingPageOffset  = 64 // KVM_DIRTY_LOG_PAGE_OFFSET
	dirtyGFNDirty        = 1 << 0
	dirtyGFNReset        = 1 << 1
	emulationHasBytes    = 1 << 0 // KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
	internalErrEmulation = 1      // KVM_INTERNAL_ERROR_EMULATION
	ioDirectionOut       = 1      // KVM_EXIT_IO_OUT
	ioEventDatamatch     = 1 << 0
	ioEventPIO           = 1 << 1
	ioEventDeassign      = 1 << 2
	irqfdDeassign        = 1 << 0
	sregsPDPTRsValid     = 1 << 0
	eventsTripleFault    = 1 << 5 // KVM_VCPUEVENT_VALID_TRIPLE_FAULT
	pitSpeakerDummy      = 1 << 0
	clockRealtime        = 1 << 2
)
