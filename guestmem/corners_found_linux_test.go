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

// What was stored past the end, in its page, is the file's once that grows: it has not
// been written back with the page.
func TestOracleFoundTail(t *testing.T) {
	const newFile = firstWritable + 1
	for _, grow := range []op{
		{kind: opTruncate, object: newFile, off: 0x4000},
		{kind: opFileWrite, object: newFile, length: 0x1000, off: 0xc369, data: 2},
	} {
		runCorner(t, corner{window: "32MiB", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{op: op{kind: opTruncate, object: newFile, off: 0x3d9e}},
				{op: doMapFile(p(10), 8*page, rw, MapShared|MapFixed, newFile, 0), want: "ok p(10)"},
				{op: doStore(0, p(13), page, 2), want: "ok 4096"},
				{op: op{kind: opSync, at: p(10), length: 4 * page, data: uint64(SyncWait)}, want: "ok"},
				{op: grow, want: "ok"},
				{op: doLoad(0, p(13), page), want: "ok 4096", data: bytesOf(2, int(page))},
			}
		}})
	}
}

// One area here is two in the kernel, and no more than the first of them may become
// data.
func TestOracleFoundProtectInSteps(t *testing.T) {
	runCorner(t, corner{window: "32MiB", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opBrk, at: p(4165)}},
			{op: op{kind: opUnmap, at: p(4144), length: 0x8000}},
			{op: op{kind: opBrk, at: p(4153)}},
			{op: op{kind: opMap, at: p(4093), length: 0x5000, prot: 0x3, flags: 0x32}},
			{op: op{kind: opLimit, prot: 0x1, data: 0xd064}},
			{op: op{kind: opProtect, at: p(4095), length: 0x1000, prot: 0x1}},
			{op: op{kind: opSwap64, at: p(4093)}},
			{op: op{kind: opProtect, at: p(4093), length: 0x7000, prot: 0x1}},
			{op: op{kind: opProtect, at: p(4093), length: 0x300000, prot: 0x7}},
		}
	}})
}

// So with what mremap leaves behind.
func TestOracleFoundRemapInSteps(t *testing.T) {
	runCorner(t, corner{window: "32MiB", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opFork, data: 0x2}},
			{op: op{kind: opClose}},
			{op: op{kind: opMap, at: p(4093), space: 0x2, length: 0x18000, prot: 0x3, flags: 0x32}},
			{op: op{kind: opMap, at: p(4091), space: 0x2, length: 0x400000, prot: 0x3, flags: 0x22}},
			{op: op{kind: opLimit, space: 0x2, prot: 0x1, data: 0x2}},
			{op: op{kind: opFork, space: 0x2}},
			{op: op{kind: opMap, at: p(4107), length: 0xe000, prot: 0x3, flags: 0x21}},
			{op: op{kind: opLock, at: p(4104), length: 0x1000}},
			{op: op{kind: opProtect, at: p(4099), length: 0x3000, prot: 0x5}},
			{op: op{kind: opFork, data: 0x1}},
			{op: op{kind: opRemap, at: p(4101), to: p(7154), space: 0x1, length: 0x5000, flags: 0x7, off: 0x5000}},
		}
	}})
}

// What a fork has left to the child's faults moves with what a refused remap has come to.
func TestOracleFoundRemapOfForked(t *testing.T) {
	runCorner(t, corner{window: "up", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opMap, at: p(4457), length: 0x5000, prot: 0x3, flags: 0x32}},
			{op: op{kind: opMap, at: p(4452), length: 0x5000, prot: 0x1, flags: 0x32}},
			{op: op{kind: opLock, at: p(4452), length: 0x5000}},
			{op: op{kind: opFork, data: 0x2}},
			{op: op{kind: opLimit, space: 0x2, prot: 0x1, data: 0x2}},
			{op: op{kind: opRemap, at: p(4454), to: p(262), space: 0x2, length: 0x7000, flags: 0x7, off: 0x7000}, want: "ENOMEM"},
		}
	}})
}

// A hole in a file cannot end beyond the largest offset, where an area that has grown may
// be.
func TestOracleFoundRemoveBeyondOffsets(t *testing.T) {
	runCorner(t, corner{window: "32MiB", steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opMap, at: p(10), length: page, prot: 0x3, flags: 0x11, object: 0x6, off: 0x7fffffffffffe000}, want: "ok p(10)"},
			{op: doRemap(p(10), page, 5*page, mayMove, 0), want: "ok p(10)"},
			{op: doAdvise(p(10), page, AdviceRemove), want: "ok"},
			{op: doAdvise(p(10), 2*page, AdviceRemove), want: "EFBIG"},
			{op: doAdvise(p(11), page, AdviceRemove), want: "EFBIG"},
			{op: doAdvise(p(12), page, AdviceRemove), want: "EINVAL"},
			{op: doMap(p(15), page, ProtNone, fixedAnon), want: "ok"},
			{op: doAdvise(p(10), 6*page, AdviceRemove), want: "EFBIG"},
		}
	}})
}

// One area that is locked here is two in the kernel, and what lies behind a guard is
// faulted in as part of the second.
func TestOracleFoundLockedGuards(t *testing.T) {
	runCorner(t, corner{window: "whole", guards: true, steps: func(p func(int) addr.GVA) []step {
		return []step{
			{op: op{kind: opFork, data: 0x1}},
			{op: op{kind: opMap, at: p(17179869173), space: 0x1, length: 0x8000, prot: 0x5, flags: 0x32}},
			{op: op{kind: opAdvise, at: p(17179869168), space: 0x1, length: 0x7000, data: 0x66}},
			{op: op{kind: opRemap, at: p(17179869176), to: p(17179869177), space: 0x1, length: 0x1000, flags: 0x7, off: 0x1000}},
			{op: op{kind: opLock, at: p(17179869174), space: 0x1, length: 0x300000}},
			{op: op{kind: opProtect, at: p(17179869173), space: 0x1, length: 0x5000, prot: 0x3}},
			{op: op{kind: opFork, space: 0x1, data: 0x3}},
		}
	}})
}
