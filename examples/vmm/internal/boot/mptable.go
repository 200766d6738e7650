package boot

import (
	"encoding/binary"
)

// The tables of the MultiProcessor Specification: a pointer that the kernel
// searches for, and behind it processors, one bus, one IOAPIC, and which of its pins
// each interrupt of the bus is on: the same number, as KVM routes them.

const (
	mpProcessor = iota
	mpBus
	mpIOAPIC
	mpInterrupt
	mpLocal

	lapicAddress  = 0xfee00000
	ioapicAddress = 0xfec00000
	lapicVersion  = 0x14
	ioapicVersion = 0x11
	isaInterrupts = 16
	mpHeaderSize  = 44
	mpPointerSize = 16

	interruptINT    = 0
	interruptNMI    = 1
	interruptExtINT = 3
	allLAPICs       = 0xff
)

func mpTables(cpus int) []byte {
	var entries []byte
	n := 0
	add := func(b ...byte) { entries, n = append(entries, b...), n+1 }
	for id := range cpus {
		flags := byte(1) // enabled
		if id == 0 {
			flags |= 2 // starts the others
		}
		e := make([]byte, 20)
		e[0], e[1], e[2], e[3] = mpProcessor, byte(id), lapicVersion, flags
		binary.LittleEndian.PutUint32(e[4:], 0x600) // family 6
		binary.LittleEndian.PutUint32(e[8:], 0x201) // FPU, APIC
		add(e...)
	}
	ioapicID := byte(cpus)
	add(append([]byte{mpBus, 0}, "ISA   "...)...)
	add(binary.LittleEndian.AppendUint32([]byte{mpIOAPIC, ioapicID, ioapicVersion, 1}, ioapicAddress)...)
	for i := range byte(isaInterrupts) {
		add(mpInterrupt, interruptINT, 0, 0, 0, i, ioapicID, i)
	}
	add(mpLocal, interruptExtINT, 0, 0, 0, 0, 0, 0)
	add(mpLocal, interruptNMI, 0, 0, 0, 0, allLAPICs, 1)

	h := make([]byte, mpHeaderSize)
	copy(h, "PCMP")
	binary.LittleEndian.PutUint16(h[4:], uint16(mpHeaderSize+len(entries)))
	h[6] = 4 // version 1.4
	copy(h[8:], "GUESTMM VMM         ")
	binary.LittleEndian.PutUint16(h[34:], uint16(n))
	binary.LittleEndian.PutUint32(h[36:], lapicAddress)
	table := append(h, entries...)
	table[7] = checksum(table)

	p := make([]byte, mpPointerSize)
	copy(p, "_MP_")
	binary.LittleEndian.PutUint32(p[4:], uint32(mpTable)+mpPointerSize)
	p[8], p[9] = 1, 4
	p[10] = checksum(p)
	return append(p, table...)
}

// checksum makes the sum of b's bytes zero.
func checksum(b []byte) (c byte) {
	for _, x := range b {
		c -= x
	}
	return c
}
