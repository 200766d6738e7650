//go:build linux && amd64

package docs_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd/pager"
)

// Example_restore is run by TestRestoreExample, where there is userfaultfd.
func Example_restore() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "guest")
	check(err)
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "guest.snap")

	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	defer mem.Close()
	_, err = mem.AddRegion(guestmem.RegionOptions{Name: "ram", Base: 0, Size: 256 << 20})
	check(err)
	check(mem.Store64(0x1000, 1))
	snapshot, err := mem.Snapshot(ctx, guestmem.SnapshotOptions{})
	check(err)
	check(mem.Store64(0x1000, 2)) // the guest goes on: this is not in the snapshot
	_, err = snapfile.Write(ctx, file, snapshot.Image(), snapfile.Options{})
	check(err)
	check(snapshot.Close())

	// Later, and elsewhere.
	saved, err := snapfile.Open(file, snapfile.OpenOptions{})
	check(err)
	defer saved.Close()
	restored, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	check(err)
	defer restored.Close()
	restore, err := pager.StartRestore(ctx, restored, saved, pager.RestoreOptions{
		Fail: func(err error) { log.Fatal("a page cannot be had: ", err) },
	})
	check(err)
	defer restore.Close()
	fmt.Println(restored.Load64(0x1000)) // fetches this page; the rest comes by itself
	check(restore.Wait(ctx))
}

func TestRestoreExample(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	mustPrint(t, Example_restore, "1 <nil>\n")
}
