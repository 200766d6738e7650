package boot

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/u-root/u-root/pkg/boot/bzimage"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Memory is guest-physical memory, zero at first.
type Memory interface {
	WriteAt(p []byte, gpa addr.GPA) (int, error)
}

// Options say what a kernel is started with.
type Options struct {
	MemoryBytes uint64
	CPUs        int
	CommandLine string
	Initrd      []byte
}

// Check finds out whether the kernel can be started so, before there is a guest.
//
// Errors: ErrNoRoom, ErrPlacement, ErrCommandLine, ErrCPUs.
func (k *Kernel) Check(o Options) error {
	_, err := k.place(o)
	return err
}

// place returns where the initial file system goes.
func (k *Kernel) place(o Options) (initrd uint64, err error) {
	if o.CPUs < 1 || o.CPUs > MaxCPUs {
		return 0, fmt.Errorf("%w: %d, from 1 to %d", ErrCPUs, o.CPUs, MaxCPUs)
	}
	if n := len(o.CommandLine); n > k.commandLineMax {
		return 0, fmt.Errorf("%w: %d bytes, the kernel takes %d", ErrCommandLine, n, k.commandLineMax)
	}
	if strings.ContainsRune(o.CommandLine, 0) {
		return 0, fmt.Errorf("%w: a NUL in it", ErrCommandLine)
	}
	ram, err := RAM(o.MemoryBytes)
	if err != nil {
		return 0, err
	}
	top := ram[0].Size
	if k.end > top {
		return 0, fmt.Errorf("%w: the kernel needs memory up to %#x, low memory ends at %#x", ErrNoRoom, k.end, top)
	}
	if len(o.Initrd) == 0 {
		return 0, nil
	}
	limit, size := top, uint64(len(o.Initrd))
	if k.initrdMax < limit {
		limit = k.initrdMax + 1
	}
	limit &^= addr.PageSize - 1
	if size > limit || (limit-size)&^(addr.PageSize-1) < k.end {
		return 0, fmt.Errorf("%w: the initial file system of %d bytes does not fit between the kernel's end at %#x and %#x", ErrNoRoom, size, k.end, limit)
	}
	return (limit - size) &^ (addr.PageSize - 1), nil
}

// Load writes everything into memory. The vCPU then begins at k.Entry with RSI at
// ParamsBase and the addresses below 4 GiB mapped to themselves.
//
// Errors: as Check; those of WriteAt.
func (k *Kernel) Load(m Memory, o Options) error {
	initrd, err := k.place(o)
	if err != nil {
		return err
	}
	ram, err := RAM(o.MemoryBytes)
	if err != nil {
		return err
	}
	type piece struct {
		what string
		at   addr.GPA
		data []byte
	}
	pieces := []piece{
		{"initial file system", addr.GPA(initrd), o.Initrd},
		{"command line", commandLine, append([]byte(o.CommandLine), 0)},
		{"boot parameters", ParamsBase, k.params(o, ram, initrd)},
		{"processor table", mpTable, mpTables(o.CPUs)},
	}
	for _, s := range k.segments {
		pieces = append(pieces, piece{"kernel", addr.GPA(s.base), s.data})
	}
	for _, p := range pieces {
		if len(p.data) == 0 {
			continue
		}
		if _, err := m.WriteAt(p.data, p.at); err != nil {
			return fmt.Errorf("%s: %w", p.what, err)
		}
	}
	return nil
}

// Offsets in struct boot_params.
const (
	paramsE820N      = bzimage.E820NR
	paramsE820       = bzimage.E820Map
	paramsMagic      = 0x202
	paramsVersion    = 0x206
	paramsLoader     = 0x210
	paramsLoadFlags  = 0x211
	paramsInitrd     = 0x218
	paramsInitrdSize = 0x21c
	paramsCmdline    = 0x228
	paramsCmdSize    = 0x238

	loaderUnknown = 0xff
)

// params returns struct boot_params, with the file's own header in it.
func (k *Kernel) params(o Options, ram []Range, initrd uint64) []byte {
	b := make([]byte, addr.PageSize)
	if k.header != nil {
		copy(b[setupHeader:], k.header)
	} else {
		// A vmlinux has none: enough of one that its own is not asked for.
		binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
		copy(b[paramsMagic:], bzimage.HeaderMagic[:])
		binary.LittleEndian.PutUint16(b[paramsVersion:], version64)
		b[paramsLoadFlags] = loadedHigh
		binary.LittleEndian.PutUint32(b[0x230:], 1<<24) // alignment
		binary.LittleEndian.PutUint32(b[paramsCmdSize:], elfCommandMax)
	}
	b[paramsLoader] = loaderUnknown
	binary.LittleEndian.PutUint32(b[paramsInitrd:], uint32(initrd))
	binary.LittleEndian.PutUint32(b[paramsInitrdSize:], uint32(len(o.Initrd)))
	binary.LittleEndian.PutUint32(b[paramsCmdline:], uint32(commandLine))
	n := 0
	for _, e := range memoryMap(ram) {
		at := b[paramsE820+20*n:]
		binary.LittleEndian.PutUint64(at, e.Addr)
		binary.LittleEndian.PutUint64(at[8:], e.Size)
		binary.LittleEndian.PutUint32(at[16:], uint32(e.MemType))
		n++
	}
	b[paramsE820N] = byte(n)
	return b
}

// memoryMap is what a BIOS would tell: RAM, but for its own data, the holes for
// adapters, and the processor table.
func memoryMap(ram []Range) []bzimage.E820Entry {
	m := []bzimage.E820Entry{
		{Addr: 0, Size: ebda, MemType: bzimage.RAM},
		{Addr: ebda, Size: 0xa0000 - ebda, MemType: bzimage.Reserved},
		{Addr: uint64(mpTable), Size: mib - uint64(mpTable), MemType: bzimage.Reserved},
		{Addr: mib, Size: ram[0].Size - mib, MemType: bzimage.RAM},
	}
	for _, r := range ram[1:] {
		m = append(m, bzimage.E820Entry{Addr: uint64(r.Base), Size: r.Size, MemType: bzimage.RAM})
	}
	return m
}
