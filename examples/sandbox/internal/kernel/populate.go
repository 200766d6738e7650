//go:build linux && amd64

package kernel

import (
	"debug/elf"

	"github.com/guestmm/guestmm/examples/sandbox/internal/image"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// What a program is certain or likely to touch is there when it starts: a fault
// costs it an exit, 40 µs on a nested host, a page from here 1 µs, or 5 where it
// is read from the file or new to the host. Only of small segments, so that what
// is wasted is small too: a Go program's "hello" touches all but a few pages of
// its 2 MiB, busybox a quarter of its own, and even that is no loss.
const (
	populateRead  = 2 << 20   // bytes of a segment that is only read or executed
	populateWrite = 512 << 10 // of one that is written
	populateStack = 4 * pageSize
)

// populate faults in the small segments of the program. It is no more than a
// head start: what fails here fails again when it is touched, if it is.
func (k *Kernel) populate(as *guestmem.AddressSpace, prog *program, at layout) {
	k.populateImage(as, prog.image, at.base)
	if prog.loader != nil {
		k.populateImage(as, prog.loader, at.loader)
	}
	k.touch(as, stackTop-populateStack, stackTop, guestmem.Write)
}

func (k *Kernel) populateImage(as *guestmem.AddressSpace, im *image.Image, base uint64) {
	for _, s := range im.Segments {
		access, most := guestmem.Read, uint64(populateRead)
		if s.Flags&elf.PF_W != 0 {
			access, most = guestmem.Write, populateWrite
		}
		if s.MemSize <= most {
			k.touch(as, base+s.Addr, base+s.Addr+s.MemSize, access)
		}
	}
}

// touch faults in the pages of [start, end), until one fails.
func (k *Kernel) touch(as *guestmem.AddressSpace, start, end uint64, access guestmem.Access) {
	for at := start &^ (pageSize - 1); at < end; at += pageSize {
		if as.Fault(k.ctx, addr.GVA(at), access) != nil {
			return
		}
	}
}
