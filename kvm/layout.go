//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The upper half of every guest address space, under root entry 511. All of it
// is supervisor-only; nothing in it is secret, and nothing in it is the
// guest's to write.
//
//	upperBase + 0x1000            the stubs, read and execute
//	          + 0x2000            the IDT
//	          + 0x10000 + id<<12  the page of vCPU id:
//	                                0x000 GDT   0x100 TSS
//	                                0xe00 RSP0 (unused: every gate has an IST)
//	                                0xf00 IST2, for NMI, #DF and #MC
//	                              0x1000 IST1, for the rest, and the entry frame
//
// The three levels of table below the root are written once, before any vCPU
// runs, but for vCPU pages, which only become present. So no translation of
// the upper half is ever stale.
const (
	upperIndex          = 511
	upperBase  addr.GVA = 0xffffff8000000000
	stubGVA             = upperBase + 0x1000
	idtGVA              = upperBase + 0x2000
	vcpuGVA             = upperBase + 0x10000
	vcpuPage0           = 0x10 // index of vCPU 0's page below upperBase

	offGDT  = 0x000
	offTSS  = 0x100
	offRSP0 = 0xe00
	offIST2 = 0xf00
	offIST1 = 0x1000

	frameSize = 40                  // RIP, CS, RFLAGS, RSP, SS
	offFrame  = offIST1 - frameSize // of the entry frame
)

// Selectors, with Linux's numbers: programs have been seen to compare them.
// 0x20, where SYSRET to 32-bit code would look, stays empty: no compatibility
// mode.
const (
	selKernelCode = 0x10
	selKernelData = 0x18
	selUserData   = 0x28 | 3
	selUserCode   = 0x30 | 3
	selTSS        = 0x40

	tssLimit = 0x67
	gdtLimit = selTSS + 16 - 1
)

// PTE bits.
const (
	pteP  = 1 << 0
	pteW  = 1 << 1
	pteU  = 1 << 2
	pteA  = 1 << 5
	pteD  = 1 << 6
	pteNX = 1 << 63
)

func putPTE(table []byte, index int, frame addr.PFN, bits uint64) {
	binary.LittleEndian.PutUint64(table[index*8:], uint64(frame.GPA())|bits)
}

// upper is the supervisor half: its frames, and the table that vCPU pages are
// added to.
type upper struct {
	mem    backing
	frames []addr.PFN // all of them; guarded by the Platform's mutex
	pdpt   addr.PFN
	tables []addr.PFN // the last level, 512 pages each
	pages  []addr.PFN // of the vCPUs that there may be
}

// newUpper builds the supervisor half with room for maxVCPUs. Their pages are
// taken now: where memory is short, taking frames has the view flushed, which
// nobody may who holds Platform.mu, as the making of a vCPU does.
func newUpper(mem backing, maxVCPUs int) (*upper, error) {
	nTables := (vcpuPage0 + maxVCPUs + 511) / 512
	frames, err := mem.AllocSupervisor(4 + nTables + maxVCPUs)
	if err != nil {
		return nil, fmt.Errorf("supervisor frames: %w", err)
	}
	u := &upper{mem: mem, frames: frames, pdpt: frames[0], tables: frames[4 : 4+nTables], pages: frames[4+nTables:]}
	pd, stubs, idt := frames[1], frames[2], frames[3]
	putPTE(mem.SupervisorBytes(u.pdpt), 0, pd, pteP|pteW|pteA)
	for i, pt := range u.tables {
		putPTE(mem.SupervisorBytes(pd), i, pt, pteP|pteW|pteA)
	}
	u.mapPage(1, stubs, pteP|pteA)
	u.mapPage(2, idt, pteP|pteA|pteNX)
	copy(mem.SupervisorBytes(stubs), stubCode())
	writeIDT(mem.SupervisorBytes(idt))
	return u, nil
}

func (u *upper) mapPage(page int, frame addr.PFN, bits uint64) {
	putPTE(u.mem.SupervisorBytes(u.tables[page/512]), page%512, frame, bits)
}

// addVCPU makes the page of vCPU id and returns it.
func (u *upper) addVCPU(id int) []byte {
	page := u.mem.SupervisorBytes(u.pages[id])
	writeGDT(page[offGDT:], vcpuPageGVA(id)+offTSS)
	writeTSS(page[offTSS:], vcpuPageGVA(id))
	u.mapPage(vcpuPage0+id, u.pages[id], pteP|pteW|pteA|pteD|pteNX)
	return page
}

func (u *upper) free() { u.mem.FreeSupervisor(u.frames) }

func vcpuPageGVA(id int) addr.GVA { return vcpuGVA + addr.GVA(id)<<addr.PageShift }

func writeGDT(gdt []byte, tss addr.GVA) {
	put := func(sel int, desc uint64) { binary.LittleEndian.PutUint64(gdt[sel&^7:], desc) }
	put(selKernelCode, 0x00af9b000000ffff)
	put(selKernelData, 0x00cf93000000ffff)
	put(selUserData, 0x00cff3000000ffff)
	put(selUserCode, 0x00affb000000ffff)
	base := uint64(tss)
	put(selTSS, tssLimit|base&0xffffff<<16|0x8b<<40|base>>24&0xff<<56)
	put(selTSS+8, base>>32)
}

func writeTSS(tss []byte, page addr.GVA) {
	put := func(off int, gva addr.GVA) { binary.LittleEndian.PutUint64(tss[off:], uint64(gva)) }
	put(4, page+offRSP0)
	put(0x24, page+offIST1)
	put(0x2c, page+offIST2)
	// An I/O bitmap beyond the limit: in and out fault in ring 3 where the
	// host lets them.
	binary.LittleEndian.PutUint16(tss[0x66:], tssLimit+1)
}

func writeIDT(idt []byte) {
	for v := range nVectors {
		ist, dpl := uint64(1), uint64(0)
		switch v {
		case vectorNMI, vectorDF, vectorMC:
			ist = 2
		case vectorBP, vectorOF:
			dpl = 3
		}
		to := uint64(stubGVA) + uint64(v*stubStride)
		low := to&0xffff | selKernelCode<<16 | ist<<32 | 0xe<<40 | dpl<<45 | 1<<47 | to>>16&0xffff<<48
		binary.LittleEndian.PutUint64(idt[v*16:], low)
		binary.LittleEndian.PutUint64(idt[v*16+8:], to>>32)
	}
}

// Control registers and MSRs of a vCPU.
const (
	cr0Guest = 0x80050033 // PG AM WP NE ET MP PE
	cr4Guest = 1<<5 | 1<<7 | 1<<9 | 1<<10 | 1<<18
	cr4FSGS  = 1 << 16
	efer     = 1<<0 | 1<<8 | 1<<10 | 1<<11 // SCE LME LMA NXE

	msrSysenterCS   = 0x174
	msrSysenterESP  = 0x175
	msrSysenterEIP  = 0x176
	msrStar         = 0xc0000081
	msrLstar        = 0xc0000082
	msrCstar        = 0xc0000083
	msrSFMask       = 0xc0000084
	msrKernelGSBase = 0xc0000102

	// sfMask is what SYSCALL clears in RFLAGS: everything that Linux clears.
	sfMask = 0x257fd5
)

// startMSRs are set once. SYSENTER_CS 0 makes SYSENTER fault. CSTAR is beyond
// reach, there being no 32-bit code segment, and leads to the stub.
func startMSRs(lstar addr.GVA) *uMSRs {
	m := &uMSRs{}
	for _, e := range []uMSR{
		{index: msrStar, data: (selUserData-8)<<48 | selKernelCode<<32},
		{index: msrLstar, data: uint64(lstar)},
		{index: msrCstar, data: uint64(stubGVA + stubSyscall)},
		{index: msrSFMask, data: sfMask},
		{index: msrKernelGSBase},
		{index: msrSysenterCS},
		{index: msrSysenterESP},
		{index: msrSysenterEIP},
	} {
		m.entries[m.n] = e
		m.n++
	}
	return m
}

// startSregs fills in ring 0 of vCPU id, in long mode on the given root.
//
// Preconditions:
//   - s came from KVM_GET_SREGS, so that what is not named here is the reset value.
func startSregs(s *uSregs, id int, root addr.PFN, fsgs bool) {
	page := uint64(vcpuPageGVA(id))
	code := uSegment{limit: 0xffffffff, selector: selKernelCode, typ: 11, present: 1, s: 1, l: 1, g: 1}
	data := uSegment{limit: 0xffffffff, selector: selKernelData, typ: 3, present: 1, s: 1, db: 1, g: 1}
	s.cs, s.ss = code, data
	s.ds, s.es, s.fs, s.gs, s.ldt = nullSegment, nullSegment, nullSegment, nullSegment, nullSegment
	s.tr = uSegment{base: page + offTSS, limit: tssLimit, selector: selTSS, typ: 11, present: 1}
	s.gdt = uTable{base: page + offGDT, limit: gdtLimit}
	s.idt = uTable{base: uint64(idtGVA), limit: nVectors*16 - 1}
	s.cr0, s.cr2, s.cr3, s.cr4, s.cr8 = cr0Guest, 0, uint64(root.GPA()), cr4Guest, 0
	if fsgs {
		s.cr4 |= cr4FSGS
	}
	s.efer = efer
	s.interrupts = [4]uint64{}
}

var nullSegment = uSegment{unusable: 1, typ: 3, dpl: 3, s: 1}
