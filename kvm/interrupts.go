package kvm

// IRQLevel is the level of an interrupt line.
type IRQLevel uint32

const (
	IRQLow  IRQLevel = 0
	IRQHigh IRQLevel = 1
)

// IOEvent is a guest write that signals an eventfd in place of an exit.
type IOEvent struct {
	Space  IOSpace
	Addr   uint64  // port or guest-physical address
	Length uint32  // of the write: 0 (any; MMIO only), 1, 2, 4 or 8
	Match  *uint64 // only writes of this value; nil: all
	FD     int     // the eventfd; stays the caller's
}

// IOSpace is where an IOEvent listens.
type IOSpace uint8

const (
	IOSpaceMMIO IOSpace = iota
	IOSpacePort
)
