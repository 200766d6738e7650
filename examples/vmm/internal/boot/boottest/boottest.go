// Package boottest makes kernels for tests: files with the headers of a bzImage or
// a vmlinux around code of the test's own.
package boottest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"github.com/u-root/u-root/pkg/boot/bzimage"
)

// Base is where the code of the kernels is loaded; its 64-bit entry is Entry.
const (
	Base  = 0x1000000
	Entry = Base + 0x200
)

// Header returns the setup header of a kernel whose protected-mode part is size bytes.
func Header(size int) bzimage.LinuxHeader {
	return bzimage.LinuxHeader{
		SetupSects: 1, Syssize: uint32(size+15) / 16, Bootsectormagic: 0xaa55,
		Jump: 0xeb | (0x268-0x202)<<8, HeaderMagic: bzimage.HeaderMagic, Protocolversion: 0x20f,
		Loadflags: 1, Code32Start: 0x100000, InitrdAddrMax: 0x7fffffff,
		Kernelalignment: 0x200000, RelocatableKernel: 1, XLoadFlags: 1, CmdLineSize: 2047,
		PrefAddress: Base, InitSize: uint32(size + 1<<20),
	}
}

// BzImage returns a bzImage of a header and a protected-mode part.
func BzImage(h bzimage.LinuxHeader, payload []byte) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		panic(err) // a fixed-size structure into memory
	}
	sectors := int(h.SetupSects)
	if sectors == 0 {
		sectors = 4
	}
	b.Write(make([]byte, max(0, (sectors+1)*512-b.Len())))
	b.Write(payload)
	return b.Bytes()
}

// Kernel returns a bzImage of code.
func Kernel(code []byte) []byte { return BzImage(Header(len(code)), code) }

// Vmlinux returns an ELF kernel of code, with bss more bytes of memory.
func Vmlinux(code []byte, bss uint64) []byte {
	const offset = 0x1000
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: Entry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	p := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Off: offset,
		Vaddr: 0xffffffff80000000 + Base, Paddr: Base, Filesz: uint64(len(code)), Memsz: uint64(len(code)) + bss, Align: offset,
	}
	var b bytes.Buffer
	for _, x := range []any{h, p} {
		if err := binary.Write(&b, binary.LittleEndian, x); err != nil {
			panic(err) // as above
		}
	}
	b.Write(make([]byte, offset-b.Len()))
	b.Write(code)
	return b.Bytes()
}
