package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/boot/bzimage"

	"github.com/guestmm/guestmm/examples/vmm/internal/boot/boottest"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// ram is memory that says what was stored outside of it. Pieces that overlap are
// an error too: each has its place.
type ram struct {
	size   uint64
	pieces map[addr.GPA][]byte
}

func newRAM(size uint64) *ram { return &ram{size: size, pieces: make(map[addr.GPA][]byte)} }

func (m *ram) WriteAt(p []byte, gpa addr.GPA) (int, error) {
	if uint64(gpa) > m.size || uint64(len(p)) > m.size-uint64(gpa) {
		return 0, fmt.Errorf("%d bytes at %v are outside of %d bytes", len(p), gpa, m.size)
	}
	for at, q := range m.pieces {
		if gpa < at+addr.GPA(len(q)) && at < gpa+addr.GPA(len(p)) {
			return 0, fmt.Errorf("%d bytes at %v overlap %d at %v", len(p), gpa, len(q), at)
		}
	}
	m.pieces[gpa] = append([]byte(nil), p...)
	return len(p), nil
}

var someCode = bytes.Repeat([]byte{0xf4}, 0x1000)

func with(f func(*bzimage.LinuxHeader)) []byte {
	h := boottest.Header(len(someCode))
	f(&h)
	return boottest.BzImage(h, someCode)
}

// elfWith changes fields of the one program header of a vmlinux.
func elfWith(f func(*elf.Prog64)) []byte {
	b := boottest.Vmlinux(someCode, 0x2000)
	var p elf.Prog64
	if _, err := binary.Decode(b[64:], binary.LittleEndian, &p); err != nil {
		panic(err)
	}
	f(&p)
	if _, err := binary.Encode(b[64:], binary.LittleEndian, p); err != nil {
		panic(err)
	}
	return b
}

func elfHeaderWith(f func(*elf.Header64)) []byte {
	b := boottest.Vmlinux(someCode, 0)
	var h elf.Header64
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		panic(err)
	}
	f(&h)
	if _, err := binary.Encode(b, binary.LittleEndian, h); err != nil {
		panic(err)
	}
	return b
}

func TestHostileKernels(t *testing.T) {
	good := boottest.Kernel(someCode)
	for name, x := range map[string]struct {
		file []byte
		want error
	}{
		"nothing":              {nil, ErrNotKernel},
		"a script":             {[]byte("#!/bin/sh\nexit 0\n"), ErrNotKernel},
		"zeroes":               {make([]byte, 1<<16), ErrNotKernel},
		"no magic":             {with(func(h *bzimage.LinuxHeader) { h.HeaderMagic[0] = 'h' }), ErrNotKernel},
		"no boot sector":       {with(func(h *bzimage.LinuxHeader) { h.Bootsectormagic = 0 }), ErrNotKernel},
		"cut in the header":    {good[:0x230], ErrTruncated},
		"cut after the header": {good[:0x268], ErrTruncated},
		"cut in the setup":     {good[:1023], ErrTruncated},
		"cut in the code":      {good[:len(good)-16], ErrTruncated},
		"255 setup sectors":    {with(func(h *bzimage.LinuxHeader) { h.SetupSects = 255 })[:0x8000], ErrTruncated},
		"more code than file":  {with(func(h *bzimage.LinuxHeader) { h.Syssize = 0xffffffff }), ErrTruncated},
		"old":                  {with(func(h *bzimage.LinuxHeader) { h.Protocolversion = 0x20b }), ErrUnsupported},
		"32-bit":               {with(func(h *bzimage.LinuxHeader) { h.XLoadFlags = 0 }), ErrUnsupported},
		"loaded low":           {with(func(h *bzimage.LinuxHeader) { h.Loadflags = 0 }), ErrUnsupported},
		"at 0":                 {with(func(h *bzimage.LinuxHeader) { h.PrefAddress = 0 }), ErrPlacement},
		"at the end":           {with(func(h *bzimage.LinuxHeader) { h.PrefAddress = 1<<64 - 4096 }), ErrPlacement},
		"at half a page":       {with(func(h *bzimage.LinuxHeader) { h.PrefAddress += 5 }), ErrPlacement},
		"ELF, cut":             {boottest.Vmlinux(someCode, 0)[:70], ErrNotKernel},
		"ELF, code cut":        {boottest.Vmlinux(someCode, 0)[:0x1800], ErrTruncated},
		"ELF, offset wraps":    {elfWith(func(p *elf.Prog64) { p.Off = 1<<64 - 8 }), ErrNotKernel},
		"ELF, size wraps":      {elfWith(func(p *elf.Prog64) { p.Filesz = 1<<63 - 1; p.Memsz = 1<<63 - 1 }), ErrTruncated},
		"ELF, less than file":  {elfWith(func(p *elf.Prog64) { p.Memsz = 1 }), ErrPlacement},
		"ELF, at 0":            {elfWith(func(p *elf.Prog64) { p.Paddr = 0 }), ErrPlacement},
		"ELF, at the end":      {elfWith(func(p *elf.Prog64) { p.Paddr = 1<<64 - 4096 }), ErrPlacement},
		"ELF, huge bss":        {elfWith(func(p *elf.Prog64) { p.Memsz = 1 << 62 }), ErrPlacement},
		"ELF, no segment":      {elfWith(func(p *elf.Prog64) { p.Type = uint32(elf.PT_NOTE) }), ErrNotKernel},
		"ELF, arm64":           {elfHeaderWith(func(h *elf.Header64) { h.Machine = uint16(elf.EM_AARCH64) }), ErrNotKernel},
		"ELF, object":          {elfHeaderWith(func(h *elf.Header64) { h.Type = uint16(elf.ET_REL) }), ErrNotKernel},
		"ELF, entry outside":   {elfHeaderWith(func(h *elf.Header64) { h.Entry = 0x5000 }), ErrPlacement},
	} {
		k, err := Parse(x.file)
		if !errors.Is(err, x.want) {
			t.Errorf("%s: %+v, %v; want %v", name, k, err, x.want)
		}
	}
}

func TestWhatDoesNotFit(t *testing.T) {
	kernel, err := Parse(boottest.Kernel(someCode))
	if err != nil {
		t.Fatal(err)
	}
	big, err := Parse(with(func(h *bzimage.LinuxHeader) { h.InitSize = 0xfffff000 }))
	if err != nil {
		t.Fatal(err)
	}
	lowInitrd, err := Parse(with(func(h *bzimage.LinuxHeader) { h.InitrdAddrMax = boottest.Base }))
	if err != nil {
		t.Fatal(err)
	}
	ok := Options{MemoryBytes: 64 * mib, CPUs: 1}
	for name, x := range map[string]struct {
		k    *Kernel
		o    func(*Options)
		want error
	}{
		"fits":               {kernel, func(*Options) {}, nil},
		"fits exactly":       {kernel, func(o *Options) { o.Initrd = make([]byte, 64*mib-int(kernel.end+4095)&^4095) }, nil},
		"no vCPU":            {kernel, func(o *Options) { o.CPUs = 0 }, ErrCPUs},
		"too many":           {kernel, func(o *Options) { o.CPUs = 1000 }, ErrCPUs},
		"no memory":          {kernel, func(o *Options) { o.MemoryBytes = 0 }, ErrNoRoom},
		"too little":         {kernel, func(o *Options) { o.MemoryBytes = 16 * mib }, ErrNoRoom},
		"all of it":          {kernel, func(o *Options) { o.MemoryBytes = 1<<64 - 4096 }, ErrPlacement},
		"half a page":        {kernel, func(o *Options) { o.MemoryBytes += 2048 }, ErrPlacement},
		"long line":          {kernel, func(o *Options) { o.CommandLine = strings.Repeat("x", 2048) }, ErrCommandLine},
		"NUL":                {kernel, func(o *Options) { o.CommandLine = "a\x00b" }, ErrCommandLine},
		"initrd as memory":   {kernel, func(o *Options) { o.Initrd = make([]byte, 64*mib) }, ErrNoRoom},
		"initrd on kernel":   {kernel, func(o *Options) { o.Initrd = make([]byte, 47*mib) }, ErrNoRoom},
		"initrd below limit": {lowInitrd, func(o *Options) { o.Initrd = make([]byte, 4096) }, ErrNoRoom},
		"kernel":             {big, func(o *Options) { o.MemoryBytes = 8 * gib }, ErrNoRoom},
	} {
		o := ok
		x.o(&o)
		m := newRAM(min(o.MemoryBytes, ramTop))
		if err := x.k.Check(o); !errors.Is(err, x.want) {
			t.Errorf("%s: Check = %v, want %v", name, err, x.want)
		}
		err := x.k.Load(m, o)
		if !errors.Is(err, x.want) {
			t.Errorf("%s: Load = %v, want %v", name, err, x.want)
		}
		if err != nil && len(m.pieces) > 0 {
			t.Errorf("%s: stored something all the same", name)
		}
	}
}

// TestMemoryMaps has RAM where the map says, and the map's entries in order and apart.
func TestMemoryMaps(t *testing.T) {
	for _, memory := range []uint64{MinMemory, 3 * gib, 3*gib + 4096, 8 * gib, MaxMemory} {
		r, err := RAM(memory)
		if err != nil {
			t.Fatal(err)
		}
		var sum, end uint64
		for _, x := range r {
			sum += x.Size
		}
		for _, e := range memoryMap(r) {
			if e.Addr < end || e.Size == 0 {
				t.Errorf("%d bytes: entry %+v after %#x", memory, e, end)
			}
			end = e.Addr + e.Size
		}
		if last := r[len(r)-1]; sum != memory || end != uint64(last.Base)+last.Size {
			t.Errorf("%d bytes: RAM %v, map up to %#x", memory, r, end)
		}
	}
}

// TestProcessorTables checks sums and lengths for every number of
// processors.
func TestProcessorTables(t *testing.T) {
	for n := 1; n <= MaxCPUs; n++ {
		b := mpTables(n)
		sum := func(b []byte) (s byte) {
			for _, x := range b {
				s += x
			}
			return s
		}
		table := b[mpPointerSize:]
		if sum(b[:mpPointerSize]) != 0 || sum(table) != 0 || int(binary.LittleEndian.Uint16(table[4:])) != len(table) {
			t.Fatalf("%d processors: bad sums or length", n)
		}
		if uint64(mpTable)+uint64(len(b)) > mib {
			t.Fatalf("%d processors: beyond 1 MiB", n)
		}
		processors, at := 0, mpHeaderSize
		for range binary.LittleEndian.Uint16(table[34:]) {
			if table[at] == mpProcessor {
				processors, at = processors+1, at+20
			} else {
				at += 8
			}
		}
		if processors != n || at != len(table) {
			t.Fatalf("%d processors: the table has %d, and ends at %d of %d", n, processors, at, len(table))
		}
	}
}

// FuzzParse: whatever the file, there is a named error or a kernel that goes into memory
// without leaving it.
func FuzzParse(f *testing.F) {
	f.Add(boottest.Kernel(someCode))
	f.Add(boottest.Vmlinux(someCode, 0x2000))
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := Parse(file)
		if err != nil {
			for _, named := range []error{ErrNotKernel, ErrTruncated, ErrUnsupported, ErrPlacement} {
				if errors.Is(err, named) {
					return
				}
			}
			t.Fatalf("an error without a name: %v", err)
		}
		o := Options{MemoryBytes: 64 * mib, CPUs: 2, CommandLine: "a", Initrd: []byte("initrd")}
		if k.Check(o) != nil {
			return
		}
		if len(k.segments) > 1 {
			return // which may overlap one another
		}
		if err := k.Load(newRAM(o.MemoryBytes), o); err != nil {
			t.Fatal(err)
		}
		if k.Entry < lowTop || k.Entry >= o.MemoryBytes {
			t.Fatalf("entry %#x", k.Entry)
		}
	})
}
