//go:build linux && amd64

package docs_test

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

func Example_regions() {
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	defer mem.Close()
	ram, err := mem.AddRegion(guestmem.RegionOptions{Name: "ram", Base: 0, Size: 256 << 20})
	check(err)
	firmware := strings.NewReader("reset vector")
	_, err = mem.AddRegion(guestmem.RegionOptions{
		Name: "rom", Base: 0xfffff000, Size: addr.PageSize, Access: guestmem.RegionReadOnly,
		Fill: func(w io.WriterAt) error {
			_, err := io.Copy(io.NewOffsetWriter(w, 0xff0), firmware)
			return err
		},
	})
	check(err)

	_, err = mem.WriteAt([]byte("command line"), 0x20000)
	check(err)
	check(mem.CollectDirty(ram, func(start addr.GPA, nPages uint64) {
		fmt.Println("dirty:", nPages, "page at", start)
	}))
	n, err := mem.ReadAt(make([]byte, 64), ram.End()-16)
	fmt.Println(n, errors.Is(err, guestmem.ErrNoRegion))
	fmt.Println(mem.Store8(0xfffffff0, 0))
	// Output:
	// dirty: 1 page at 0x20000
	// 16 true
	// guestmem: store [0xfffffff0, 0xfffffff1): region is read-only
}

func Example_foreignMapping() {
	// The memory of a VMM that maps it itself, and has slots over it already.
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	check(err)
	check(unix.Ftruncate(fd, 64<<20))
	mapping, err := unix.MmapPtr(fd, 0, nil, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(err)
	defer unix.MunmapPtr(mapping, 64<<20)

	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	defer mem.Close() // the mapping stays
	_, err = mem.AddRegion(guestmem.RegionOptions{
		Base: 0, Size: 64 << 20,
		Backing: guestmem.BackingForeign, Mapping: addr.HVA(uintptr(mapping)),
	})
	check(err)
	check(mem.Store64(0x1000, 42))
	fmt.Println(mem.Load32(0x1000))
	// Output: 42 <nil>
}

func Example_clones() {
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	_, err = mem.AddRegion(guestmem.RegionOptions{Base: 0, Size: 256 << 20})
	check(err)
	_, err = mem.WriteAt([]byte("booted"), 0x1000)
	check(err)

	// The guest is paused, and its slots go with the memory.
	template, err := mem.Seal()
	check(err)
	defer template.Close()
	seed := byte(0)
	clones, err := template.CloneN(1, guestmem.CloneOptions{Hook: func(m *guestmem.Memory) error {
		seed++ // what must differ between clones
		return m.Store8(0x2000, seed)
	}})
	check(err)
	for _, clone := range clones {
		text := make([]byte, 6)
		_, err := clone.ReadAt(text, 0x1000)
		fmt.Println(string(text), err)
		check(clone.Close())
	}
	// Output: booted <nil>
}
