//go:build linux && amd64

package docs_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

func newSpace() (*guestmem.AddressSpace, func()) {
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 64 << 20})
	check(err)
	as, err := mem.NewAddressSpace(guestmem.SpaceOptions{})
	check(err)
	return as, func() {
		check(as.Close())
		check(mem.Close())
	}
}

func Example_handle() {
	as, done := newSpace()
	defer done()
	ctx := context.Background()
	at, err := as.Map(ctx, guestmem.MapOptions{
		Length: addr.PageSize,
		Prot:   guestmem.ProtRead | guestmem.ProtWrite,
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	})
	check(err)

	// One handle for each goroutine that accesses guest memory often.
	h := as.Memory().NewHandle()
	defer h.Close()
	guest := as.With(h)
	sum := 0
	buf := make([]byte, 8)
	for i := range addr.GVA(addr.PageSize / 8) {
		_, err := guest.ReadAt(ctx, buf, at+8*i)
		check(err)
		sum += int(buf[0])
	}
	fmt.Println("sum", sum)
	// Output: sum 0
}

func Example_fault() {
	as, done := newSpace()
	defer done()
	ctx := context.Background()

	// What a VMM does with a page fault of its guest.
	resolve := func(gva addr.GVA, access guestmem.Access) string {
		err := as.Fault(ctx, gva, access)
		switch {
		case err == nil:
			return "enter the guest again"
		case errors.Is(err, guestmem.ErrNotMapped):
			return "SIGSEGV, SEGV_MAPERR"
		case errors.Is(err, guestmem.ErrAccess):
			return "SIGSEGV, SEGV_ACCERR"
		case errors.Is(err, guestmem.ErrBus):
			return "SIGBUS"
		default: // ErrNoMemory, or what reading a file came to
			return "kill the guest: " + err.Error()
		}
	}
	at, err := as.Map(ctx, guestmem.MapOptions{
		Length: addr.PageSize,
		Prot:   guestmem.ProtRead,
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	})
	check(err)
	fmt.Println(resolve(at, guestmem.Read))
	fmt.Println(resolve(at, guestmem.Write))
	fmt.Println(resolve(at+addr.PageSize, guestmem.Read))
	// Output:
	// enter the guest again
	// SIGSEGV, SEGV_ACCERR
	// SIGSEGV, SEGV_MAPERR
}

func Example_errno() {
	as, done := newSpace()
	defer done()

	// A system call's emulation passes the errno on.
	_, err := as.ReadAt(context.Background(), make([]byte, 8), 0xdead000)
	var errno unix.Errno
	fmt.Println(errors.As(err, &errno), errno == unix.EFAULT)
	// Output: true true
}

func Example_file() {
	as, done := newSpace()
	defer done()
	ctx := context.Background()
	src := strings.NewReader("text of a program")

	file, err := as.Memory().NewFileObject(src, src.Size(), "/bin/program")
	check(err)
	at, err := as.Map(ctx, guestmem.MapOptions{
		Length: addr.PageSize,
		Prot:   guestmem.ProtRead | guestmem.ProtExec,
		Flags:  guestmem.MapPrivate,
		Object: file,
	})
	check(err)
	file.Close() // the area keeps it open

	text, err := as.ReadCString(ctx, at, 64)
	fmt.Println(text, err)
	// Output: text of a program <nil>
}
