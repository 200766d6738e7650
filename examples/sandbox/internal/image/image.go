package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Why a file cannot run. Parse wraps one of them in a sentence.
var (
	ErrNotELF      = errors.New("not an ELF file")
	ErrMachine     = errors.New("not a 64-bit x86 program")
	ErrInterpreter = errors.New("invalid dynamic program: its interpreter")
	ErrTruncated   = errors.New("truncated ELF file")
	ErrBadSegments = errors.New("invalid ELF segments")
)

const (
	pageSize = 4096

	// maxHeaders bounds the program header table: Linux refuses one above 64 KiB.
	maxHeaders = 65536 / progSize

	headerSize = 64
	progSize   = 56

	// maxInterpreter bounds the name in PT_INTERP with its NUL: Linux's PATH_MAX.
	maxInterpreter = 4096

	// MaxAddress is the end of the addresses a program may be linked for: the
	// user half less its last page.
	MaxAddress = 0x7fff_ffff_f000
)

// Segment is one PT_LOAD: FileSize bytes at Offset, zeroes up to MemSize.
type Segment struct {
	Addr     uint64 // of the first byte; congruent to Offset modulo the page size
	Offset   uint64
	FileSize uint64
	MemSize  uint64 // ≥ FileSize, not 0
	Flags    elf.ProgFlag
}

// End returns the first address behind the segment. It cannot overflow: Parse checked.
func (s Segment) End() uint64 { return s.Addr + s.MemSize }

// Image is a validated program: segments ascend, do not overlap, lie inside
// the file and below MaxAddress.
type Image struct {
	PositionIndependent bool   // every address is relative to a base of the loader's choice
	Interpreter         string // of a dynamic program: what is loaded beside it and runs first; "": none
	Entry               uint64
	Segments            []Segment
	PHDR                uint64 // address of the program headers once loaded; 0: not loaded
	PHNum               int
	ExecutableStack     bool
}

// Bounds returns the page-aligned range that all segments lie in.
func (im *Image) Bounds() (start, end uint64) {
	first, last := im.Segments[0], im.Segments[len(im.Segments)-1]
	return first.Addr &^ (pageSize - 1), (last.End() + pageSize - 1) &^ (pageSize - 1)
}

// Parse reads and checks the headers of a file of size bytes.
func Parse(r io.ReaderAt, size int64) (*Image, error) {
	var header elf.Header64
	if err := readStruct(r, 0, headerSize, &header); err != nil {
		if !hasMagic(r) {
			return nil, ErrNotELF
		}
		return nil, fmt.Errorf("%w: %d bytes, the header alone is %d", ErrTruncated, size, headerSize)
	}
	if err := checkHeader(&header); err != nil {
		return nil, err
	}
	tableSize := uint64(header.Phnum) * progSize
	if header.Phoff > uint64(size) || tableSize > uint64(size)-header.Phoff {
		return nil, fmt.Errorf("%w: program headers at %#x end behind its %d bytes", ErrTruncated, header.Phoff, size)
	}
	progs := make([]elf.Prog64, header.Phnum)
	if err := readStruct(r, int64(header.Phoff), int(tableSize), progs); err != nil {
		return nil, fmt.Errorf("%w: program headers: %w", ErrTruncated, err)
	}
	im, err := build(&header, progs, uint64(size))
	if err == nil {
		im.Interpreter, err = interpreter(r, progs)
	}
	if err != nil {
		return nil, err
	}
	return im, nil
}

// interpreter reads the name in the first PT_INTERP, which ends with a NUL; ""
// without one.
func interpreter(r io.ReaderAt, progs []elf.Prog64) (string, error) {
	i := slices.IndexFunc(progs, func(p elf.Prog64) bool { return elf.ProgType(p.Type) == elf.PT_INTERP })
	if i < 0 {
		return "", nil
	}
	p := &progs[i]
	if p.Filesz < 2 || p.Filesz > maxInterpreter || p.Off > math.MaxInt64-maxInterpreter {
		return "", fmt.Errorf("%w has a name of %d bytes at %#x", ErrInterpreter, p.Filesz, p.Off)
	}
	name := make([]byte, p.Filesz)
	if n, err := r.ReadAt(name, int64(p.Off)); n < len(name) {
		return "", fmt.Errorf("%w has its name at %#x: %w", ErrInterpreter, p.Off, err)
	}
	end := bytes.IndexByte(name, 0)
	if end < 1 || name[len(name)-1] != 0 {
		return "", fmt.Errorf("%w has a name that is empty or has no end", ErrInterpreter)
	}
	return string(name[:end]), nil
}

func hasMagic(r io.ReaderAt) bool {
	var magic [len(elf.ELFMAG)]byte
	n, _ := r.ReadAt(magic[:], 0)
	return n == len(magic) && string(magic[:]) == elf.ELFMAG
}

func checkHeader(h *elf.Header64) error {
	switch {
	case string(h.Ident[:4]) != elf.ELFMAG:
		return ErrNotELF
	case elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64,
		elf.Data(h.Ident[elf.EI_DATA]) != elf.ELFDATA2LSB,
		elf.Machine(h.Machine) != elf.EM_X86_64:
		return fmt.Errorf("%w: it is %v, %v", ErrMachine, elf.Class(h.Ident[elf.EI_CLASS]), elf.Machine(h.Machine))
	case elf.Type(h.Type) != elf.ET_EXEC && elf.Type(h.Type) != elf.ET_DYN:
		return fmt.Errorf("%w: its type is %v, not a program's", ErrNotELF, elf.Type(h.Type))
	case h.Phentsize != progSize || h.Phnum == 0 || h.Phnum > maxHeaders:
		return fmt.Errorf("%w: %d program headers of %d bytes", ErrBadSegments, h.Phnum, h.Phentsize)
	}
	return nil
}

func build(h *elf.Header64, progs []elf.Prog64, size uint64) (*Image, error) {
	im := &Image{
		PositionIndependent: elf.Type(h.Type) == elf.ET_DYN,
		Entry:               h.Entry,
		PHNum:               int(h.Phnum),
	}
	for i := range progs {
		p := &progs[i]
		switch elf.ProgType(p.Type) {
		case elf.PT_GNU_STACK:
			im.ExecutableStack = elf.ProgFlag(p.Flags)&elf.PF_X != 0
		case elf.PT_LOAD:
			if p.Memsz == 0 && p.Filesz == 0 {
				continue
			}
			if err := im.addSegment(p, size); err != nil {
				return nil, fmt.Errorf("program header %d: %w", i, err)
			}
		}
	}
	if len(im.Segments) == 0 {
		return nil, fmt.Errorf("%w: none to load", ErrBadSegments)
	}
	im.locateHeaders(h.Phoff, uint64(h.Phnum)*progSize)
	return im, nil
}

// addSegment checks one PT_LOAD and what it may collide with: the one before
// it, since segments must ascend. Two segments may share a page (the later one
// wins it, as under Linux) but no byte.
func (im *Image) addSegment(p *elf.Prog64, size uint64) error {
	switch {
	case p.Filesz > p.Memsz:
		return fmt.Errorf("%w: %d bytes in the file, %d in memory", ErrBadSegments, p.Filesz, p.Memsz)
	case p.Off > size || p.Filesz > size-p.Off:
		return fmt.Errorf("%w: a segment ends at %#x, the file at %#x", ErrTruncated, saturatingAdd(p.Off, p.Filesz), size)
	case p.Vaddr > MaxAddress || p.Memsz > MaxAddress-p.Vaddr:
		return fmt.Errorf("%w: [%#x, +%#x) leaves the address space", ErrBadSegments, p.Vaddr, p.Memsz)
	case (p.Vaddr-p.Off)%pageSize != 0:
		return fmt.Errorf("%w: address %#x and offset %#x differ modulo the page size", ErrBadSegments, p.Vaddr, p.Off)
	}
	if n := len(im.Segments); n > 0 && p.Vaddr < im.Segments[n-1].End() {
		last := im.Segments[n-1]
		return fmt.Errorf("%w: [%#x, %#x) overlaps or precedes [%#x, %#x)", ErrBadSegments,
			p.Vaddr, p.Vaddr+p.Memsz, last.Addr, last.End())
	}
	im.Segments = append(im.Segments, Segment{
		Addr: p.Vaddr, Offset: p.Off, FileSize: p.Filesz, MemSize: p.Memsz, Flags: elf.ProgFlag(p.Flags),
	})
	return nil
}

// locateHeaders finds where the program headers will be in memory: glibc's
// start code walks them to find its thread-local storage.
func (im *Image) locateHeaders(off, length uint64) {
	for _, s := range im.Segments {
		if s.Offset <= off && off-s.Offset <= s.FileSize && length <= s.FileSize-(off-s.Offset) {
			im.PHDR = s.Addr + (off - s.Offset)
			return
		}
	}
}

func readStruct(r io.ReaderAt, off int64, size int, into any) error {
	buf := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, off, int64(size)), buf); err != nil {
		return err
	}
	return binary.Read(bytes.NewReader(buf), binary.LittleEndian, into)
}

func saturatingAdd(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
