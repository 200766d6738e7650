package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/u-root/u-root/pkg/boot/bzimage"
)

// Kernel is a kernel that can be put into memory.
type Kernel struct {
	// Format is bzImage or vmlinux.
	Format string
	// Entry is where it begins, in 64-bit mode.
	Entry uint64

	segments []segment
	end      uint64 // of what it uses until it knows of memory itself
	// header is the setup header of the file, from offset 0x1f1 on; nil: a vmlinux.
	header         []byte
	initrdMax      uint64 // no byte of the initial file system may be beyond
	commandLineMax int    // without the NUL
}

// segment is bytes of the kernel, with zeroes behind them up to size.
type segment struct {
	base, size uint64
	data       []byte
}

const (
	setupHeader   = 0x1f1
	setupJump     = 0x200 // its second byte is how far the header goes on after 0x202
	setupEnd      = 0x290
	startup64     = 0x200 // of the protected-mode part
	version64     = 0x20c // the first that tells of a 64-bit entry
	xlfKernel64   = 1 << 0
	loadedHigh    = 1 << 0
	sector        = 512
	elfInitrdMax  = 0x7fffffff
	elfCommandMax = 2047
	maxSegments   = 64 // a vmlinux has five
)

// Parse reads a kernel, whose bytes it keeps. Errors: ErrNotKernel, ErrTruncated, ErrUnsupported,
// ErrPlacement.
func Parse(file []byte) (*Kernel, error) {
	if bytes.HasPrefix(file, []byte(elf.ELFMAG)) {
		return parseELF(file)
	}
	return parseBzImage(file)
}

func parseBzImage(file []byte) (*Kernel, error) {
	if len(file) < setupJump+6 {
		return nil, fmt.Errorf("%w: %d bytes", ErrNotKernel, len(file))
	}
	if file[0x1fe] != 0x55 || file[0x1ff] != 0xaa || !bytes.Equal(file[0x202:0x206], bzimage.HeaderMagic[:]) {
		return nil, fmt.Errorf("%w: no boot sector with the header HdrS, and no ELF header", ErrNotKernel)
	}
	var h bzimage.LinuxHeader
	if err := binary.Read(bytes.NewReader(file), binary.LittleEndian, &h); err != nil {
		return nil, fmt.Errorf("%w: %d bytes, the setup header has %d", ErrTruncated, len(file), binary.Size(h))
	}
	switch {
	case h.Protocolversion < version64:
		return nil, fmt.Errorf("%w: boot protocol %d.%02d, need 2.12", ErrUnsupported, h.Protocolversion>>8, h.Protocolversion&0xff)
	case h.XLoadFlags&xlfKernel64 == 0:
		return nil, fmt.Errorf("%w: it says so (xloadflags %#x)", ErrUnsupported, h.XLoadFlags)
	case h.Loadflags&loadedHigh == 0:
		return nil, fmt.Errorf("%w: it wants to be loaded below 1 MiB", ErrUnsupported)
	}
	sectors := int(h.SetupSects)
	if sectors == 0 {
		sectors = 4
	}
	at := (sectors + 1) * sector
	if at+startup64 >= len(file) {
		return nil, fmt.Errorf("%w: %d bytes, of which %d are setup code", ErrTruncated, len(file), at)
	}
	payload := file[at:]
	// Syssize counts paragraphs; a signature may follow them.
	if want := uint64(h.Syssize) * 16; h.Syssize != 0 && uint64(len(payload)) < want-min(want, 15) {
		return nil, fmt.Errorf("%w: %d bytes of code, the header says %d", ErrTruncated, len(payload), want)
	}
	base := h.PrefAddress
	size := max(uint64(h.InitSize), uint64(len(payload)))
	if base < lowTop || base > math.MaxUint32 || base%4096 != 0 {
		return nil, fmt.Errorf("%w: it prefers address %#x", ErrPlacement, base)
	}
	end := min(setupJump+2+int(file[setupJump+1]), setupEnd, at)
	k := &Kernel{
		Format: "bzImage", Entry: base + startup64, end: base + size,
		segments:  []segment{{base: base, size: uint64(len(payload)), data: payload}},
		initrdMax: uint64(h.InitrdAddrMax), commandLineMax: int(min(h.CmdLineSize, maxCommandLine-1)),
	}
	if end > setupHeader {
		k.header = file[setupHeader:end]
	}
	return k, nil
}

func parseELF(file []byte) (*Kernel, error) {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotKernel, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("%w: %v %v %v", ErrNotKernel, f.Class, f.Machine, f.Type)
	}
	k := &Kernel{Format: "vmlinux", initrdMax: elfInitrdMax, commandLineMax: elfCommandMax}
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		switch {
		case p.Off > uint64(len(file)) || p.Filesz > uint64(len(file))-p.Off:
			return nil, fmt.Errorf("%w: segment %d is bytes [%#x, %#x+%#x) of %#x", ErrTruncated, i, p.Off, p.Off, p.Filesz, len(file))
		case len(k.segments) == maxSegments:
			return nil, fmt.Errorf("%w: more than %d segments", ErrPlacement, maxSegments)
		case p.Filesz > p.Memsz || p.Paddr < lowTop || p.Paddr > math.MaxUint32 || p.Memsz > math.MaxUint32:
			return nil, fmt.Errorf("%w: segment %d is at %#x, %#x of %#x bytes", ErrPlacement, i, p.Paddr, p.Filesz, p.Memsz)
		}
		k.segments = append(k.segments, segment{base: p.Paddr, size: p.Memsz, data: file[p.Off : p.Off+p.Filesz]})
		k.end = max(k.end, p.Paddr+p.Memsz)
		// Some linkers leave a virtual address.
		if k.Entry == 0 && f.Entry-p.Vaddr < p.Memsz {
			k.Entry = f.Entry - p.Vaddr + p.Paddr
		}
	}
	if len(k.segments) == 0 {
		return nil, fmt.Errorf("%w: nothing in it is to be loaded", ErrNotKernel)
	}
	for _, s := range k.segments {
		if f.Entry-s.base < uint64(len(s.data)) {
			k.Entry = f.Entry
		}
	}
	if k.Entry == 0 {
		return nil, fmt.Errorf("%w: its entry %#x is in no segment", ErrPlacement, f.Entry)
	}
	return k, nil
}
