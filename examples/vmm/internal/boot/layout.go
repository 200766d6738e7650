package boot

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	// MinMemory and MaxMemory bound the memory of a guest.
	MinMemory = 16 * mib
	MaxMemory = 512 * gib
	// MaxCPUs is how many processors a guest can have.
	MaxCPUs = 64
	// DefaultCommandLine has the console on the serial port, and a guest that ends
	// where it would reboot.
	DefaultCommandLine = "console=ttyS0 reboot=k panic=-1"

	// ramTop is where low memory ends at the latest: devices are from there to 4 GiB.
	ramTop = 3 * gib
	// lowTop is where the kernel may lie from.
	lowTop = mib
)

// What lies below 1 MiB.
const (
	ParamsBase   addr.GPA = 0x7000
	StackTop     addr.GPA = 0x9ff0
	LongModeBase addr.GPA = 0x10000 // descriptors and page tables, up to 0x1e000

	commandLine    addr.GPA = 0x20000
	maxCommandLine          = 0x10000
	ebda                    = 0x9fc00
	mpTable        addr.GPA = 0xf0000
)

// Range is a piece of RAM.
type Range struct {
	Base addr.GPA
	Size uint64
}

// RAM returns where memory bytes of memory lie: from 0 on, and what is more than 3
// GiB from 4 GiB on.
//
// Errors: ErrNoRoom below MinMemory, ErrPlacement above MaxMemory or for half pages.
func RAM(memory uint64) ([]Range, error) {
	switch {
	case memory < MinMemory:
		return nil, fmt.Errorf("%w: %d bytes, at least %d MiB", ErrNoRoom, memory, MinMemory/mib)
	case memory > MaxMemory || memory%addr.PageSize != 0:
		return nil, fmt.Errorf("%w: %d bytes of memory, whole pages up to %d GiB", ErrPlacement, memory, uint64(MaxMemory)/gib)
	}
	ram := []Range{{Base: 0, Size: min(memory, ramTop)}}
	if memory > ramTop {
		ram = append(ram, Range{Base: 4 * gib, Size: memory - ramTop})
	}
	return ram, nil
}
