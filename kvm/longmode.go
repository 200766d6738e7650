package kvm

import (
	"encoding/binary"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// LongMode is what a guest needs in memory to begin in 64-bit mode without a
// boot loader: page tables in which every virtual address is the same physical one,
// descriptor tables, and a task state for each vCPU. The block of memory, from
// Base on:
//
//	+0x0000  GDT: 0x10 kernel code, 0x18 kernel data, 0x28 user data, 0x30 user code,
//	         0x40 + 16*id the task of vCPU id
//	+0x1000  IDT, empty: put handlers in by SetGate; an exception without one is a
//	         triple fault (VMExitShutdown)
//	+0x2000  task states, 128 bytes each, of up to MaxLongModeVCPUs
//	+0x4000  the I/O permissions of all of them: ring 3 may use every port
//	+0x7000  PML4, PDPT, and a page directory for each GiB that is mapped
//
// Pages are of 2 MiB, for both rings, and accessed and dirty from the start, so that
// the processor has nothing to write into the tables.
type LongMode struct {
	base addr.GPA
	size uint64
}

// LongModeOptions say where the block lies and how much is mapped.
type LongModeOptions struct {
	// Base is a page of a region, and so is what follows, as LongModeSize says.
	Base addr.GPA
	// MapSize is how much is mapped from address 0 on, rounded up to whole GiB; 4
	// GiB if 0, at most 512 GiB. Holes are mapped as well: an access there exits as
	// MMIO.
	MapSize uint64
}

// Ring is a privilege level.
type Ring uint8

const (
	Ring0 Ring = 0
	Ring3 Ring = 3
)

// MaxLongModeVCPUs is how many vCPUs a block has task states for.
const MaxLongModeVCPUs = 64

const (
	longGDT    = 0x0000
	longIDT    = 0x1000
	longTSS    = 0x2000
	longIOMap  = 0x4000
	longTables = 0x7000

	longTSSSize = 128
	ioMapSize   = 0x2000 // a bit for each port, 0: allowed; one byte of ones ends it
	gib         = 1 << 30
	pteHuge     = 1 << 7

	longKernelCode = 0x10
	longKernelData = 0x18
	longUserData   = 0x28 | 3
	longUserCode   = 0x30 | 3
	longTask       = 0x40
)

// LongModeSize returns how many bytes the block takes for a MapSize.
func LongModeSize(mapSize uint64) uint64 {
	return longTables + (2+mapGiB(mapSize))*addr.PageSize
}

func mapGiB(mapSize uint64) uint64 {
	if mapSize == 0 {
		return 4
	}
	return (mapSize-1)/gib + 1
}

// SetupLongMode writes the block into memory.
//
// Errors: guestmem.ErrInvalid for an unaligned Base, one whose block is not mapped,
// or too large a MapSize; those of Memory.WriteAt.
func SetupLongMode(m *guestmem.Memory, o LongModeOptions) (*LongMode, error) {
	n := mapGiB(o.MapSize)
	if uint64(o.Base)%addr.PageSize != 0 || n > 512 || uint64(o.Base)+LongModeSize(o.MapSize) > n*gib {
		return nil, opError("SetupLongMode", fmt.Errorf("base %v with %d GiB mapped: %w", o.Base, n, guestmem.ErrInvalid))
	}
	l := &LongMode{base: o.Base, size: LongModeSize(o.MapSize)}
	b := make([]byte, l.size)
	l.writeDescriptors(b)
	l.writeTables(b[longTables:], n)
	if _, err := m.WriteAt(b, o.Base); err != nil {
		return nil, opError("SetupLongMode", err)
	}
	return l, nil
}

func (l *LongMode) writeDescriptors(b []byte) {
	put := func(sel int, desc uint64) { binary.LittleEndian.PutUint64(b[longGDT+sel&^7:], desc) }
	put(longKernelCode, 0x00af9b000000ffff)
	put(longKernelData, 0x00cf93000000ffff)
	put(longUserData, 0x00cff3000000ffff)
	put(longUserCode, 0x00affb000000ffff)
	for id := range MaxLongModeVCPUs {
		at := l.task(id)
		limit := taskLimit(id)
		put(longTask+16*id, limit&0xffff|at&0xffffff<<16|0x8b<<40|limit>>16<<48|at>>24&0xff<<56)
		put(longTask+16*id+8, at>>32)
		binary.LittleEndian.PutUint16(b[longTSS+id*longTSSSize+0x66:], toIOMap(id))
	}
	b[longIOMap+ioMapSize] = 0xff
}

func (l *LongMode) task(id int) uint64 { return uint64(l.base) + longTSS + uint64(id)*longTSSSize }

// toIOMap returns how far the I/O permissions are from a task state. They are shared,
// so each of these reaches over those behind it.
func toIOMap(id int) uint16 { return uint16(longIOMap - longTSS - id*longTSSSize) }

func taskLimit(id int) uint64 { return uint64(toIOMap(id)) + ioMapSize }

func (l *LongMode) writeTables(b []byte, nGiB uint64) {
	const table = 1<<0 | 1<<1 | 1<<2 | 1<<5 // present, writable, user, accessed
	put := func(page, index, entry uint64) {
		binary.LittleEndian.PutUint64(b[page*addr.PageSize+index*8:], entry)
	}
	at := func(page uint64) uint64 { return l.Root() + page*addr.PageSize }
	put(0, 0, at(1)|table)
	for g := range nGiB {
		put(1, g, at(2+g)|table)
		for i := range uint64(512) {
			put(2+g, i, g*gib+i<<21|table|1<<6|pteHuge)
		}
	}
}

// Root returns the value of CR3.
func (l *LongMode) Root() uint64 { return uint64(l.base) + longTables }

// End returns the address after the block.
func (l *LongMode) End() addr.GPA { return l.base + addr.GPA(l.size) }

// SetGate has a vector lead to a handler in ring 0, with interrupts off. ring is
// the one that may call it by INT.
//
// Errors: those of Memory.WriteAt.
func (l *LongMode) SetGate(m *guestmem.Memory, vector uint8, handler uint64, ring Ring) error {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], handler&0xffff|longKernelCode<<16|0xe<<40|uint64(ring&3)<<45|1<<47|handler>>16&0xffff<<48)
	binary.LittleEndian.PutUint64(b[8:], handler>>32)
	_, err := m.WriteAt(b[:], l.base+longIDT+addr.GPA(vector)*16)
	return opError("SetGate", err)
}

// SetStack sets the stack that vCPU id changes to when ring 3 takes an exception or
// an interrupt.
//
// Errors: guestmem.ErrInvalid for an id of MaxLongModeVCPUs or more; those of
// Memory.WriteAt.
func (l *LongMode) SetStack(m *guestmem.Memory, id int, top uint64) error {
	if id < 0 || id >= MaxLongModeVCPUs {
		return opError("SetStack", fmt.Errorf("vCPU %d: %w", id, guestmem.ErrInvalid))
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], top)
	_, err := m.WriteAt(b[:], addr.GPA(l.task(id)+4))
	return opError("SetStack", err)
}

// Sregs makes s, which came from VCPU.Sregs, those of vCPU id in the ring.
func (l *LongMode) Sregs(s SpecialRegs, id int, ring Ring) SpecialRegs {
	code := Segment{Limit: 0xffffffff, Selector: longKernelCode, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := Segment{Limit: 0xffffffff, Selector: longKernelData, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	if ring == Ring3 {
		code.Selector, code.DPL = longUserCode, 3
		data.Selector, data.DPL = longUserData, 3
	}
	s.CS, s.SS, s.DS, s.ES, s.FS, s.GS = code, data, data, data, data, data
	s.LDT = Segment{Unusable: 1}
	s.TR = Segment{Base: l.task(id), Limit: uint32(taskLimit(id)), Selector: uint16(longTask + 16*id), Type: 11, Present: 1}
	s.GDT = DescriptorTable{Base: uint64(l.base) + longGDT, Limit: longTask + 16*MaxLongModeVCPUs - 1}
	s.IDT = DescriptorTable{Base: uint64(l.base) + longIDT, Limit: 256*16 - 1}
	s.CR0 = 0x80050033 // PG AM WP NE ET MP PE
	s.CR2, s.CR3, s.CR8 = 0, l.Root(), 0
	s.CR4 = 1<<5 | 1<<7 | 1<<9 | 1<<10   // PAE PGE OSFXSR OSXMMEXCPT
	s.EFER = 1<<0 | 1<<8 | 1<<10 | 1<<11 // SCE LME LMA NXE
	return s
}
