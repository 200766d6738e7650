package sys

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A page that goes and comes while a file is looked through is a run of its own, or
// none; never an empty one.
func TestEachDataBesideHoles(t *testing.T) {
	fd, err := unix.MemfdCreate("each-data", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "each-data")
	defer f.Close()
	const size = 16 * page
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1}, size-1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := f.WriteAt([]byte{1}, 0); err != nil {
				t.Error(err)
				return
			}
			if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, page); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 50_000 {
		last := uint64(0)
		err := EachData(f, 0, size, func(off, n uint64) error {
			if n == 0 || off < last || off+n > size {
				t.Errorf("a run of %d bytes at %d, after %d", n, off, last)
			}
			last = off + n
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if last != size {
			t.Fatalf("the last run ends at %d of %d", last, size)
		}
		if t.Failed() {
			break
		}
	}
	close(done)
	wg.Wait()
}
