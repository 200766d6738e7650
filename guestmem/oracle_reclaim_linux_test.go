package guestmem

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A kernel that is short of memory takes what MADV_FREE has given up (D-free), or swaps
// out, and here all stays. It counts what it takes, of everybody's: a sequence that
// differs is run again if it has taken something meanwhile, and a difference that is
// none of this is there again.

// mostReclaims is how often a sequence is run again.
const mostReclaims = 20

// reclaimedPages returns how many pages the kernel has taken so far.
func reclaimedPages(tb testing.TB) (sum uint64) {
	text, err := os.ReadFile("/proc/vmstat")
	mustDo(tb, err)
	for line := range strings.Lines(string(text)) {
		var n uint64
		for _, name := range []string{"pglazyfreed", "pswpout"} {
			if k, _ := fmt.Sscanf(line, name+" %d", &n); k == 1 {
				sum += n
			}
		}
	}
	return sum
}
