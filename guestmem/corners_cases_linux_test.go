//go:build amd64

package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Shorthands of operations, for the tables.

const (
	fixedAnon  = MapPrivate | MapAnonymous | MapFixed
	sharedAnon = MapShared | MapAnonymous | MapFixed
)

// Objects of worldFiles.
const (
	emptyFile = 1 + iota
	shortFile // 100 bytes
	fourPages // 4 pages
	longFile  // 37 pages and 1234 bytes
)

func doMap(at addr.GVA, length uint64, prot Prot, flags MapFlags) op {
	return op{kind: opMap, at: at, length: length, prot: prot, flags: flags}
}

func doMapFile(at addr.GVA, length uint64, prot Prot, flags MapFlags, object int, off uint64) op {
	return op{kind: opMap, at: at, length: length, prot: prot, flags: flags, object: object, off: off}
}

func doUnmap(at addr.GVA, length uint64) op { return op{kind: opUnmap, at: at, length: length} }

func doProtect(at addr.GVA, length uint64, prot Prot) op {
	return op{kind: opProtect, at: at, length: length, prot: prot}
}

func doDiscard(at addr.GVA, length uint64) op { return op{kind: opDiscard, at: at, length: length} }
func doBrk(to addr.GVA) op                    { return op{kind: opBrk, at: to} }

func doRead(space int, at addr.GVA, n uint64) op {
	return op{kind: opReadAt, space: space, at: at, length: n}
}

func doWrite(space int, at addr.GVA, n, seed uint64) op {
	return op{kind: opWriteAt, space: space, at: at, length: n, data: seed}
}

func doLoad(space int, at addr.GVA, n uint64) op {
	return op{kind: opLoad, space: space, at: at, length: n}
}

func doStore(space int, at addr.GVA, n, seed uint64) op {
	return op{kind: opStore, space: space, at: at, length: n, data: seed}
}

func doTouch(at addr.GVA, access Access) op { return op{kind: opTouch, at: at, prot: access} }
func doFork(from, to int) op                { return op{kind: opFork, space: from, data: uint64(to)} }
func doClose(space int) op                  { return op{kind: opClose, space: space} }

// zeros are n bytes that were never written.
func zeros(n int) string { return string(make([]byte, n)) }

// bytesOf are the n bytes that a write of the seed leaves.
func bytesOf(seed uint64, n int) string { return string(patternOf(seed, n)) }

// three is the usual beginning: pages 0 to 3, over a table border.
func three(p func(int) addr.GVA) step {
	return step{doMap(p(0), 3*page, rw, fixedAnon), "ok p(0)", "0-3 rw-p", ""}
}

func TestCornersMap(t *testing.T) {
	runCorners(t, []corner{
		{name: "length 0", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(0, 0, rw, anon), "EINVAL", "=", ""},
				{doMap(0, 0, rw, MapAnonymous), "EINVAL", "=", ""}, // before the type
				{doMap(p(0), 0, rw, anon|MapFixedNoReplace), "EINVAL", "=", ""},
				{doMap(p(0)+1, 0, rw, fixedAnon), "EINVAL", "=", ""},
			}
		}},
		{name: "length too long", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(0, ^uint64(0), rw, anon), "ENOMEM", "=", ""}, // rounds to 0
				{doMap(0, minusPage, rw, anon), "ENOMEM", "=", ""},
				{doMap(0, 1<<47, rw, anon), "ENOMEM", "=", ""},
				{doMap(0, 1<<63, rw, anon), "ENOMEM", "=", ""},
				{doMap(0, 1<<47, rw, MapAnonymous), "ENOMEM", "=", ""}, // before the type
				{doMap(p(0)+1, 1<<47, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(p(0), ^uint64(0), rw, fixedAnon), "ENOMEM", "=", ""},
			}
		}},
		{name: "fixed beyond the space", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(p(8191), 2*page, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(p(8191)+1, page, rw, fixedAnon), "ENOMEM", "=", ""}, // before the alignment
				{doMap(p(8192), page, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(1<<47, page, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(1<<63, page, rw, anon|MapFixedNoReplace), "ENOMEM", "=", ""},
				{doMap(^addr.GVA(0)&^(page-1), 2*page, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(^addr.GVA(0), page, rw, fixedAnon), "ENOMEM", "=", ""},
				{doMap(p(8191), page, rw, fixedAnon), "ok p(8191)", "0-3 rw-p, 8191-8192 rw-p", ""},
				{doWrite(0, p(8191)+100, page-100, 1), "ok 3996", "=", ""},
				{doStore(0, p(8191)+4000, 100, 2), "SEGV_MAPERR 96", "=", ""},
			}
		}},
		{name: "fixed below the lowest", window: "whole", steps: func(func(int) addr.GVA) []step {
			return []step{
				{doMap(0, page, rw, fixedAnon), "EPERM", "", ""},
				{doMap(0, 4*page, rw, anon|MapFixedNoReplace), "EPERM", "", ""},
				{doMap(1, page, rw, fixedAnon), "EINVAL", "", ""},
				{doMap(0, 1<<47, rw, fixedAnon), "ENOMEM", "", ""},
				{doMap(0, page, rw, MapFixed|MapAnonymous), "EPERM", "", ""}, // before the type
			}
		}},
		{name: "fixed unaligned", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(p(0)+1, page, rw, fixedAnon), "EINVAL", "=", ""},
				{doMap(p(0)+1, page, rw, anon|MapFixedNoReplace), "EINVAL", "=", ""}, // before what is there
				{doMap(p(5)+1, page, rw, MapFixed|MapAnonymous), "EINVAL", "=", ""},
			}
		}},
		{name: "noreplace", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(p(2), 2*page, rw, anon|MapFixedNoReplace), "EEXIST", "=", ""},
				{doMap(p(2), 2*page, rw, MapAnonymous|MapFixedNoReplace), "EEXIST", "=", ""}, // before the type
				{doMapFile(p(0), page, r_, MapPrivate|MapFixedNoReplace, fourPages, 1<<63), "EEXIST", "=", ""},
				{doMap(p(1), page, rw, fixedAnon|MapFixedNoReplace), "EEXIST", "=", ""},
				{doMap(p(3), page, r_, anon|MapFixedNoReplace), "ok p(3)", "0-3 rw-p, 3-4 r--p", ""},
			}
		}},
		{name: "offset", steps: func(p func(int) addr.GVA) []step {
			const top = ^uint64(0) &^ (page - 1)
			return []step{
				{doMapFile(p(0), page, r_, MapPrivate|MapFixed, fourPages, 5), "EINVAL", "=", ""},
				{doMapFile(0, 1<<47, r_, MapPrivate, fourPages, 5), "EINVAL", "=", ""}, // before the length
				{doMapFile(p(0), 2*page, r_, MapPrivate|MapFixed, fourPages, top), "EOVERFLOW", "=", ""},
				{doMapFile(p(0), 2*page, r_, MapFixed, fourPages, top), "EOVERFLOW", "=", ""}, // before the type
				{doMapFile(p(0), page, r_, MapPrivate|MapFixed, fourPages, 1<<63), "EOVERFLOW", "=", ""},
				{doMapFile(p(0), page, r_, MapPrivate|MapFixed, fourPages, 1<<63-page), "EOVERFLOW", "=", ""},
				{doMapFile(p(0), page, r_, MapPrivate|MapFixed, fourPages, 1<<63-2*page), "ok p(0)", "0-1 r--p", ""},
				{doMapFile(p(0), 2*page, rw, fixedAnon, 0, 1<<63), "ok p(0)", "0-2 rw-p", ""}, // means nothing
				{doMapFile(p(4), 2*page, rw, sharedAnon, 0, 4*page), "ok p(4)", "0-2 rw-p, 4-6 rw-s", ""},
				{doStore(0, p(5), 9, 1), "ok 9", "=", ""},
			}
		}},
		{name: "types", steps: func(p func(int) addr.GVA) []step {
			steps := []step{three(p)}
			for _, f := range []MapFlags{0, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15} {
				steps = append(steps, step{doMap(p(1), page, rw, MapAnonymous|MapFixed|f), "EINVAL", "=", ""})
				if f != 3 {
					steps = append(steps, step{doMapFile(p(1), page, r_, MapFixed|f, fourPages, 0), "EINVAL", "=", ""})
				}
			}
			return append(steps,
				step{doMap(p(1), page, rw, MapAnonymous|MapFixed|2), "ok p(1)", "=", ""},
				step{doMap(p(1), page, rw, MapAnonymous|MapFixed|1), "ok p(1)", "0-1 rw-p, 1-2 rw-s, 2-3 rw-p", ""},
			)
		}},
		{name: "shared and written, of a file that is read-only", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMapFile(p(1), page, rw, MapShared|MapFixed, fourPages, 0), "EACCES", "=", ""},
				{doMapFile(p(1), page, ProtWrite, MapShared|MapFixed, fourPages, 0), "EACCES", "=", ""},
				{doMapFile(p(1), page, rw, mapSharedValidate|MapFixed, fourPages, 0), "EACCES", "=", ""},
				{doMapFile(p(1), page, rw, mapSharedValidate|MapFixed|0x800000, fourPages, 0), "ENOTSUP", "=", ""},
				{doMapFile(p(5), page, rw, mapSharedValidate|MapFixedNoReplace, fourPages, 0), "ENOTSUP", "=", ""},
				{doMapFile(p(1), page, rw, MapShared|MapFixedNoReplace, fourPages, 0), "EEXIST", "=", ""},
				{doMapFile(p(1), page, rw, MapPrivate|MapFixed, fourPages, 0), "ok p(1)", "0-1 rw-p, 1-2 rw-p, 2-3 rw-p", ""},
			}
		}},
		{name: "unknown bits", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), page, rw, fixedAnon|0x800000|MapStack|MapNoReserve), "ok p(0)", "0-1 rw-p", ""},
				{doMap(p(1), page, rw|0x80, fixedAnon), "ok p(1)", "0-2 rw-p", ""},
				{doMap(p(2), page, r_|8, fixedAnon), "ok p(2)", "0-2 rw-p, 2-3 r--p", ""},
			}
		}},
		{name: "over something", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doWrite(0, p(0), 3*page, 1), "ok 12288", "=", ""},
				{doMap(p(1), page, r_, fixedAnon), "ok p(1)", "0-1 rw-p, 1-2 r--p, 2-3 rw-p", ""},
				{doLoad(0, p(1), 8), "ok 8", "=", zeros(8)},
				{doLoad(0, p(2), 8), "ok 8", "=", bytesOf(1, 3*page)[2*page : 2*page+8]},
				{doMap(p(0), 3*page, rw, fixedAnon), "ok p(0)", "0-3 rw-p", ""},
				{doLoad(0, p(2), 8), "ok 8", "=", zeros(8)},
				{doMap(p(3), page, rw, fixedAnon), "ok p(3)", "0-4 rw-p", ""},
			}
		}},
		{name: "populate", steps: func(p func(int) addr.GVA) []step {
			return []step{ // which pages are there is compared after each step
				{doMap(p(0), 3*page, rw, fixedAnon|MapPopulate), "ok", "0-3 rw-p", ""},
				{doMap(p(4), 3*page, r_, fixedAnon|MapPopulate), "ok", "", ""},
				{doMap(p(8), 3*page, ProtNone, fixedAnon|MapPopulate), "ok", "", ""},
				{doMap(p(12), 3*page, ProtWrite, fixedAnon|MapPopulate), "ok", "", ""},
				{doMap(p(16), 3*page, ProtExec, fixedAnon|MapPopulate), "ok", "", ""},
				{doMap(p(20), 3*page, rw, sharedAnon|MapPopulate), "ok", "", ""},
				{doMap(p(24), 3*page, rw, fixedAnon|MapPopulate|mapNonBlock), "ok", "", ""},
				{doMapFile(p(28), 8*page, rw, MapPrivate|MapFixed|MapPopulate, fourPages, 2*page), "ok", "", ""}, // past its end
			}
		}},
	})
}

func TestCornersFile(t *testing.T) {
	runCorners(t, []corner{
		{name: "past the end", steps: func(p func(int) addr.GVA) []step {
			tail := bytesOf(78, 100)[90:] + zeros(10)
			return []step{
				{doMapFile(p(0), 3*page, rw|ProtExec, MapPrivate|MapFixed, shortFile, 0), "ok p(0)", "0-3 rwxp", ""},
				{doLoad(0, p(0)+90, 20), "ok 20", "=", tail},
				{doLoad(0, p(0)+4090, 20), "SIGBUS 6", "=", zeros(6)},
				{doRead(0, p(0)+4090, 20), "ok 6", "=", zeros(6)},
				{doRead(0, p(1), 20), "EFAULT", "=", ""},
				{doWrite(0, p(0)+4090, 20, 1), "ok 6", "=", ""},
				{doWrite(0, p(2), 20, 1), "EFAULT", "=", ""},
				{doStore(0, p(0)+4090, 20, 1), "SIGBUS 6", "=", ""},
				{doTouch(p(1), Read), "SIGBUS", "=", ""},
				{doTouch(p(1), Write), "SIGBUS", "=", ""},
				{doTouch(p(2), Execute), "SIGBUS", "=", ""},
				{op{kind: opPopulate, at: p(0), length: 3 * page, prot: Write}, "SIGBUS", "=", ""},
				{doMapFile(p(4), page, rw, MapPrivate|MapFixed, emptyFile, 0), "ok", "", ""},
				{doTouch(p(4), Read), "SIGBUS", "=", ""},
				{doMapFile(p(5), page, rw, MapPrivate|MapFixed, fourPages, 4*page), "ok", "", ""},
				{doTouch(p(5), Write), "SIGBUS", "=", ""},
			}
		}},
		{name: "private writes", steps: func(p func(int) addr.GVA) []step {
			file := bytesOf(79, 4*page)
			return []step{
				{doMapFile(p(0), 4*page, rw, MapPrivate|MapFixed, fourPages, 0), "ok", "0-4 rw-p", ""},
				{doMapFile(p(4), 2*page, r_, MapPrivate|MapFixed, fourPages, page), "ok", "", ""},
				{doStore(0, p(1)+8, 8, 1), "ok 8", "=", ""},
				{doLoad(0, p(1), 16), "ok 16", "=", file[page:page+8] + bytesOf(1, 8)},
				{doLoad(0, p(4), 16), "ok 16", "=", file[page : page+16]},
				{doDiscard(p(1), page), "ok", "=", ""},
				{doLoad(0, p(1), 16), "ok 16", "=", file[page : page+16]},
				{doUnmap(p(1), page), "ok", "0-1 rw-p, 2-4 rw-p, 4-6 r--p", ""},
				{doLoad(0, p(2), 16), "ok 16", "=", file[2*page : 2*page+16]},
			}
		}},
		{name: "offsets that follow one another", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMapFile(p(0), 2*page, r_, MapPrivate|MapFixed, longFile, 0), "ok", "0-2 r--p", ""},
				{doMapFile(p(2), 2*page, r_, MapPrivate|MapFixed, longFile, 2*page), "ok", "0-4 r--p", ""},
				{doMapFile(p(4), 2*page, r_, MapPrivate|MapFixed, longFile, 5*page), "ok", "0-4 r--p, 4-6 r--p", ""},
				{doMapFile(p(6), page, r_, MapPrivate|MapFixed, fourPages, 7*page), "ok", "0-4 r--p, 4-6 r--p, 6-7 r--p", ""},
				{doProtect(p(1), page, rw), "ok", "0-1 r--p, 1-2 rw-p, 2-4 r--p, 4-6 r--p, 6-7 r--p", ""},
				{doProtect(p(1), page, r_), "ok", "0-4 r--p, 4-6 r--p, 6-7 r--p", ""},
				{doLoad(0, p(3), 16), "ok 16", "=", bytesOf(80, 4*page)[3*page : 3*page+16]},
				{doLoad(0, p(4), 16), "ok 16", "=", bytesOf(80, 6*page)[5*page : 5*page+16]},
			}
		}},
	})
}

func TestCornersPlacement(t *testing.T) {
	none := func(hint addr.GVA, pages uint64) op { return doMap(hint, pages*page, ProtNone, anon) }
	runCorners(t, []corner{
		{name: "hints", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{none(p(100), 2), "ok p(100)", "100-102 ---p", ""},
				{none(p(200)+7, 2), "ok p(200)", "", ""}, // rounded down
				{none(p(300)+4095, 2), "ok p(300)", "", ""},
				{none(p(99), 2), "ok p(8190)", "", ""}, // the hole is too small
				{none(p(100), 1), "ok p(8189)", "", ""},
				{none(p(98), 2), "ok p(98)", "", ""},
				{none(0, 1), "ok p(8188)", "", ""},
				{none(5, 1), "ok p(8187)", "", ""}, // in page 0: none
				{none(p(8191), 2), "ok p(8185)", "", ""},
				{none(1<<63, 1), "ok p(8184)", "", ""},
				{none(^addr.GVA(0), 1), "ok p(8183)", "", ""},
			}
		}},
		{name: "hints below the lowest", window: "whole", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{none(p(0)-page, 1), "ok p(0)", "0-1 ---p", ""},
				{none(p(0)-1, 1), "ok", "", ""}, // taken: the top
			}
		}},
		{name: "the highest hole that fits", window: "tight", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{none(p(0), 100), "ok p(0)", "0-100 ---p", ""},
				{none(0, 1), "ENOMEM", "=", ""},
				{none(p(50), 1), "ENOMEM", "=", ""},
				{doUnmap(p(10), 3*page), "ok", "0-10 ---p, 13-100 ---p", ""},
				{doUnmap(p(50), 2*page), "ok", "", ""},
				{doUnmap(p(70), 1*page), "ok", "", ""},
				{none(0, 3), "ok p(10)", "", ""},
				{none(0, 2), "ok p(50)", "", ""},
				{none(0, 2), "ENOMEM", "=", ""},
				{none(0, 1), "ok p(70)", "0-100 ---p", ""},
				{doUnmap(p(20), 4*page), "ok", "", ""},
				{none(0, 1), "ok p(23)", "", ""}, // at its top
				{doMapFile(0, page, rw, MapShared, fourPages, 0), "EACCES", "=", ""},
				{none(0, 3), "ok p(20)", "0-100 ---p", ""},
				{doMapFile(0, page, rw, MapShared, fourPages, 0), "ENOMEM", "=", ""}, // before EACCES
				{doMap(0, page, rw, MapAnonymous), "ENOMEM", "=", ""},
			}
		}},
		{name: "from the bottom", window: "up", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{none(0, 1), "ok p(0)", "0-1 ---p", ""},
				{none(0, 1), "ok p(1)", "0-2 ---p", ""},
				{none(p(5), 1), "ok p(5)", "", ""},
				{none(0, 4), "ok p(6)", "", ""},
				{none(0, 3), "ok p(2)", "0-10 ---p", ""},
				{none(p(5), 1), "ok p(10)", "", ""},
			}
		}},
		{name: "whole 2 MiB", huge: true, steps: func(p func(int) addr.GVA) []step {
			return []step{ // page 1 begins a 2 MiB page, and so does 1 + 512 n
				{none(0, 1), "ok p(8191)", "", ""},
				{none(0, 512), "ok p(7169)", "", ""},
				{none(0, 1024), "ok p(6145)", "", ""},
				{none(0, 513), "ok p(5632)", "", ""}, // not whole
				{none(p(2000), 512), "ok p(2000)", "", ""},
				{none(p(8191), 512), "ok p(5120)", "", ""}, // a hint that is not taken: as it comes
				{none(p(8191), 511), "ok p(4609)", "", ""},
				{none(p(8191), 512), "ok p(4097)", "", ""},
				{doMap(0, 2<<20, rw, MapShared|MapAnonymous), "ok p(3585)", "", ""}, // shared: not aligned
				{doMapFile(0, 2<<20, rw, MapPrivate, longFile, 0), "ok p(3073)", "", ""},
				{none(0, 512), "ok p(1025)", "", ""},
			}
		}},
		{name: "whole 2 MiB, from the bottom", window: "up", huge: true, steps: func(func(int) addr.GVA) []step {
			return []step{ // page 341 begins a 2 MiB page
				{none(0, 1), "ok p(0)", "", ""},
				{none(0, 512), "ok p(341)", "", ""},
				{none(0, 512), "ok p(853)", "", ""},
				{none(0, 340), "ok p(1)", "", ""},
			}
		}},
	})
}
