package main

import (
	"math"

	"gvisor.dev/gvisor/pkg/context"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/platform"
)

// nullPlatform satisfies the memory manager and runs nothing.
type nullPlatform struct {
	platform.NoCPUPreemptionDetection
	platform.NoCPUNumbers
	platform.UseHostGlobalMemoryBarrier
}

func (nullPlatform) SupportsAddressSpaceIO() bool                { return false }
func (nullPlatform) MapUnit() uint64                             { return 0 }
func (nullPlatform) MinUserAddress() hostarch.Addr               { return hostarch.PageSize }
func (nullPlatform) MaxUserAddress() hostarch.Addr               { return 1 << 46 }
func (nullPlatform) NewContext(context.Context) platform.Context { return nil }
func (nullPlatform) SeccompInfo() platform.SeccompInfo           { return nil }
func (nullPlatform) ConcurrencyCount() int                       { return math.MaxInt }

func (nullPlatform) NewAddressSpace() (platform.AddressSpace, error) {
	return nullAddressSpace{}, nil
}

// nullAddressSpace takes every mapping and keeps none.
type nullAddressSpace struct{ platform.NoAddressSpaceIO }

func (nullAddressSpace) MapFile(hostarch.Addr, memmap.File, memmap.FileRange, hostarch.AccessType, bool) error {
	return nil
}
func (nullAddressSpace) Unmap(hostarch.Addr, uint64) {}
func (nullAddressSpace) Release()                    {}
func (nullAddressSpace) PreFork()                    {}
func (nullAddressSpace) PostFork()                   {}
