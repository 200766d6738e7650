//go:build amd64

package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What TestOracle has found here, as it printed it.

// mmapBase is where the window ends without randomization.
const mmapBase addr.GVA = 0x7ffff7fff000

// A fixed range that begins below the lowest address and is longer than what
// lies above it is refused for where it begins: it does end in time.
func TestOracleFoundFixedBelow(t *testing.T) {
	runCorner(t, corner{window: "whole", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opMap, at: p(0) - page, length: uint64(mmapBase-p(0)) + page, prot: 0x3, flags: 0x100021}},
		}
	}})
}

// MAP_POPULATE with MAP_NONBLOCK does nothing.
func TestOracleFoundNonBlock(t *testing.T) {
	runCorner(t, corner{window: "32MiB", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opMap, length: 0x1000, prot: 0x3, flags: 0x18022, data: 0x2}},
		}
	}})
}

// The heap does not shrink where nothing of what would go is mapped.
func TestOracleFoundBrk(t *testing.T) {
	runCorner(t, corner{window: "tight", around: true, steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opBrk, at: p(96), length: 0x1000, data: 0x2}, want: "ok p(96)"},
			{op: op{kind: opUnmap, at: p(90), length: 0x6000, data: 0x2}},
			{op: op{kind: opBrk, at: p(94), length: 0x1000, data: 0x2}, want: "ok p(96)"},
		}
	}})
}

// MAP_SHARED_VALIDATE of a file is refused as MAP_SHARED is.
func TestOracleFoundSharedValidate(t *testing.T) {
	runCorner(t, corner{window: "tight", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opMap, at: p(72), length: 0x1000, prot: 0x3, flags: 0x13, object: 0x1, data: 0x2}, want: "EACCES"},
		}
	}})
}

// A break that does not grow populates nothing, even where new mappings are locked:
// the page that it lies in stays absent.
func TestOracleFoundBrkOfLocked(t *testing.T) {
	runCorner(t, corner{window: "whole", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opBrk, at: p(17179852859) + 0xddd, length: 0x1000, data: 0x2}},
			{op: op{kind: opLock, at: p(17179852839), length: 0x300000}},
			{op: op{kind: opLockAll, length: 0x1000, data: 0x2}},
			{op: op{kind: opBrk, at: 0xf000, length: 0x1000, data: 0x2}},
		}
	}})
}

// Whether there is room is asked before whether it may be locked.
func TestOracleFoundRoomBeforeLock(t *testing.T) {
	runCorner(t, corner{window: "whole", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opLockAll, length: 0x1000, data: 0x2}},
			{op: op{kind: opMap, at: p(17179869162), length: 0x1000, prot: 0x3, flags: 0x61, data: 0x2}},
			{op: op{kind: opMap, at: p(17179869157), length: 0x3000, prot: 0x3, flags: 0x32, data: 0x2}},
			{op: op{kind: opMap, at: 0x7ffff7fff000, length: 0x3ffff8008000, prot: 0x3, flags: 0x22, data: 0x2}, want: "ENOMEM"},
		}
	}})
}
