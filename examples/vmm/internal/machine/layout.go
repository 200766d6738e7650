//go:build linux && amd64

package machine

import (
	"fmt"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	// MinMemory and MaxMemory bound what the built-in guest can have.
	MinMemory = 16 * mib
	MaxMemory = 64 * gib

	romPages = 16
	romSeed  = 0x0bad5eed
)

// Numbers of the areas.
const (
	DataArea = iota
	SharedArea
	HotArea
)

// Layout says where the regions of a guest lie:
//
//	0           low: code, control pages, ledgers, tables    memfd
//	4 GiB       data: a half for each vCPU                   memfd
//	then        shared: both vCPUs write it                  memfd
//	then        rom                                          private, read-only
//	then        hot: added while the guest runs              memfd
//	then        nothing: accesses exit
//
// each at the next GiB, beyond where interrupt controllers are.
type Layout struct {
	memory, hot       uint64 // what NewLayout was given
	LowSize           uint64
	Data, Shared, Hot guest.Area
	ROM               addr.GPA
	Hole              addr.GPA
	MapSize           uint64
}

// MemoryBytes is what NewLayout was given.
func (l *Layout) MemoryBytes() uint64 { return l.memory }

// NewLayout lays out memory bytes of memory, hot of which come later.
func NewLayout(memory, hot uint64) (Layout, error) {
	l := Layout{memory: memory, hot: hot}
	if memory < MinMemory || memory > MaxMemory || memory%addr.PageSize != 0 {
		return l, fmt.Errorf("%d bytes of memory: the built-in guest has whole pages, %d MiB to %d GiB: %w", memory, MinMemory/mib, MaxMemory/gib, guestmem.ErrInvalid)
	}
	if hot > MaxMemory || hot%addr.PageSize != 0 {
		return l, fmt.Errorf("%d bytes of memory to come: %w", hot, guestmem.ErrInvalid)
	}
	const sharedSize = 4 * mib
	table := func(pages uint64) uint64 { return (pages*8 + addr.PageSize - 1) &^ (addr.PageSize - 1) }
	l.LowSize = uint64(guest.TablesBase) + (table((memory+hot)/addr.PageSize)+2*mib-1)&^(2*mib-1)
	dataSize := memory - l.LowSize - sharedSize - romPages*addr.PageSize
	if l.LowSize+sharedSize+2*mib > memory {
		return l, fmt.Errorf("%d bytes of memory leave none for data: %w", memory, guestmem.ErrInvalid)
	}
	at, tables := addr.GPA(4*gib), guest.TablesBase
	next := func(size uint64) (base addr.GPA) {
		base, at = at, (at+addr.GPA(size)+gib)&^(gib-1)
		return base
	}
	area := func(id, size uint64, kind guest.AreaKind) guest.Area {
		a := guest.Area{ID: id, Base: next(size), Pages: size / addr.PageSize, Kind: kind, Table: tables}
		tables += addr.GPA(table(a.Pages))
		return a
	}
	l.Data = area(DataArea, dataSize, guest.AreaHalves)
	l.Shared = area(SharedArea, sharedSize, guest.AreaShared)
	l.ROM = next(romPages * addr.PageSize)
	l.Hot = area(HotArea, hot, guest.AreaHalves)
	l.Hole = next(gib)
	l.MapSize = uint64(at)
	return l, nil
}
