//go:build linux && amd64

package docs_test

import (
	"context"
	"fmt"
	"log"

	"github.com/guestmm/guestmm/guestmem"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func Example_readme() {
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 64 << 20})
	check(err)
	defer mem.Close()
	parent, err := mem.NewAddressSpace(guestmem.SpaceOptions{})
	check(err)
	defer parent.Close()

	ctx := context.Background()
	at, err := parent.Map(ctx, guestmem.MapOptions{
		Length: 1 << 20,
		Prot:   guestmem.ProtRead | guestmem.ProtWrite,
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	})
	check(err)
	_, err = parent.WriteAt(ctx, []byte("parent"), at)
	check(err)

	child, err := parent.Fork() // as fast for a gigabyte as for a page
	check(err)
	defer child.Close()
	_, err = child.WriteAt(ctx, []byte("child!"), at) // copies one page
	check(err)

	buf := make([]byte, 6)
	_, err = parent.ReadAt(ctx, buf, at)
	fmt.Printf("%s %v\n", buf, err)
	// Output: parent <nil>
}
