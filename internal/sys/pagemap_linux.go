package sys

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// Bits of a word of /proc/self/pagemap.
const (
	pagemapPresent = 1 << 63
	pagemapSwapped = 1 << 62
	pagemapFile    = 1 << 61 // of a file, or shared
)

// EachPresent calls fn for every run of pages of a private mapping, as byte
// offsets into it, that hold something of the mapping's own: written since it
// was made, in memory or swapped out. Pages of the file below are not among
// them, nor is anything faulted in. address is that of the mapping's first byte.
// (/proc/self/pagemap; Linux 3.5)
func EachPresent(address uintptr, n uint64, fn func(off, n uint64) error) error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	const pageSize = 4096
	buf := make([]byte, min(64<<10, n/pageSize*8))
	var start, end uint64 // the run gathered so far
	for off := uint64(0); off < n; {
		want := min(uint64(len(buf)), (n-off)/pageSize*8)
		if _, err := f.ReadAt(buf[:want], int64((uint64(address)+off)/pageSize*8)); err != nil && err != io.EOF {
			return fmt.Errorf("/proc/self/pagemap: %w", err)
		}
		for i := uint64(0); i < want; i += 8 {
			w := binary.NativeEndian.Uint64(buf[i:])
			if w&(pagemapPresent|pagemapSwapped) != 0 && w&pagemapFile == 0 {
				if end != off {
					if end > start {
						if err := fn(start, end-start); err != nil {
							return err
						}
					}
					start = off
				}
				end = off + pageSize
			}
			off += pageSize
		}
	}
	if end > start {
		return fn(start, end-start)
	}
	return nil
}
