//go:build amd64

package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	mayMove   = RemapMayMove
	moveTo    = RemapMayMove | RemapFixed
	dontUnmap = RemapMayMove | RemapDontUnmap
)

func TestCornersRemapRefused(t *testing.T) {
	runCorners(t, []corner{
		{name: "parameters", steps: func(p func(int) addr.GVA) []step {
			remap := func(at addr.GVA, old, now uint64, flags RemapFlags, to addr.GVA, want string) step {
				return step{doRemap(at, old, now, flags, to), want, "=", ""}
			}
			return []step{
				three(p),
				remap(p(0)+1, page, page, 0, 0, "EINVAL"),
				remap(p(0), page, page, 8, 0, "EINVAL"),
				remap(p(0), page, 0, mayMove, 0, "EINVAL"),
				remap(p(0), page, ^uint64(0), mayMove, 0, "EINVAL"), // rounds to 0
				remap(p(0), page, 1<<47, mayMove, 0, "EINVAL"),
				remap(p(0), page, page, RemapFixed, p(8), "EINVAL"),
				remap(p(0), page, page, RemapDontUnmap, 0, "EINVAL"),
				remap(p(0), page, 2*page, dontUnmap, 0, "EINVAL"),
				remap(p(0), page, page, moveTo, p(8)+1, "EINVAL"),
				remap(p(0), page, page, moveTo, p(8192), "EINVAL"),
				remap(p(0), 2*page, 2*page, moveTo, p(1), "EINVAL"), // overlap
				remap(p(1), page, 2*page, moveTo, p(0), "EINVAL"),
				// Before the source is looked up.
				remap(p(20), page, 0, 0, 0, "EINVAL"),
				remap(p(20), page, page, 0, 0, "EFAULT"),
				remap(p(20), page, page, moveTo, p(30), "EFAULT"),
				remap(p(20), 0, page, mayMove, 0, "EFAULT"),
				remap(p(0), 0, page, mayMove, 0, "EINVAL"), // a second view of a private area
				remap(p(0), 4*page, 5*page, mayMove, 0, "EFAULT"),
				remap(p(0), 4*page, 4*page, dontUnmap, 0, "EFAULT"),
				remap(p(2), 2*page, 3*page, moveTo, p(30), "EFAULT"),
				remap(p(0), 2*page, 3*page, 0, 0, "ENOMEM"), // not at the area's end
			}
		}},
		{name: "the target goes, whatever comes next", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 3*page, rw, sharedAnon), "ok", "0-3 rw-s", ""},
				{doMap(p(8), page, r_, fixedAnon), "ok", "0-3 rw-s, 8-9 r--p", ""},
				{doRemap(p(1), 0, page, moveTo, p(1)), "EFAULT", "0-1 rw-s, 2-3 rw-s, 8-9 r--p", ""},
				{doRemap(p(0), 9*page, 2*page, moveTo, p(8)), "EINVAL", "=", ""}, // overlap
				// That the source is gone comes before what would be cut off.
				{doRemap(p(8), minusPage, page, moveTo, p(8)), "EFAULT", "0-1 rw-s, 2-3 rw-s", ""},
				{doMap(p(8), page, r_, fixedAnon), "ok", "", ""},
				// What is cut off ends beyond all.
				{doRemap(p(8), 9000*page, page, moveTo, p(2)), "EINVAL", "0-1 rw-s, 8-9 r--p", ""},
			}
		}},
		{name: "below the lowest address", window: "whole", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doRemap(p(0), page, page, moveTo, p(0)-page), "EPERM", "=", ""},
				{doRemap(p(0), page, 2*page, moveTo, p(0)-2*page), "EPERM", "=", ""},
			}
		}},
	})
}

func TestCornersRemapInPlace(t *testing.T) {
	runCorners(t, []corner{
		{name: "shrink and grow", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doMap(p(6), page, r_, fixedAnon), "ok", "0-3 rw-p, 6-7 r--p", ""},
				{doRemap(p(0), 3*page, 3*page, 0, 0), "ok p(0)", "=", ""},
				{doRemap(p(0), 9*page, 9*page, 0, 0), "ok p(0)", "=", ""}, // only the start is looked at
				{doRemap(p(0), 3*page, 5*page, 0, 0), "ok p(0)", "0-5 rw-p, 6-7 r--p", ""},
				{doRemap(p(1), 4*page, 5*page, 0, 0), "ok p(1)", "0-6 rw-p, 6-7 r--p", ""},
				{doRemap(p(0), 6*page, 7*page, 0, 0), "ENOMEM", "=", ""},
				{doRemap(p(0), 20*page, 2*page, 0, 0), "ok p(0)", "0-2 rw-p", ""}, // over areas and holes
				{doLoad(0, p(1), 8), "ok 8", "=", bytesOf(1, 2*page)[page : page+8]},
				{doRemap(p(0), 2*page, 3*page, 0, 0), "ok p(0)", "0-3 rw-p", ""},
				{doLoad(0, p(2), 8), "ok 8", "=", zeros(8)},
				{doRemap(p(0), 9000*page, page, 0, 0), "EINVAL", "=", ""}, // the tail ends beyond all
			}
		}},
		{name: "a file shows on", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMapFile(p(0), page, r_, MapPrivate|MapFixed, fourPages, page), "ok", "", ""},
				{doRemap(p(0), page, 4*page, 0, 0), "ok p(0)", "0-4 r--p", ""},
				{doLoad(0, p(2), 8), "ok 8", "", bytesOf(79, 4*page)[3*page : 3*page+8]},
				{doLoad(0, p(3), 8), "SIGBUS 0", "", ""},
			}
		}},
		{name: "the window's end", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(8190), 2*page, rw, fixedAnon), "ok", "8190-8192 rw-p", ""},
				{doRemap(p(8190), 2*page, 4*page, 0, 0), "ENOMEM", "=", ""},
				{doRemap(p(8190), 2*page, 4*page, mayMove, 0), "ok p(8186)", "8186-8190 rw-p", ""},
			}
		}},
	})
}

func TestCornersRemapMoves(t *testing.T) {
	one := bytesOf(1, 3*page)
	runCorners(t, []corner{
		{name: "anywhere", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doRemap(p(1), page, 2*page, mayMove, 0), "ok p(8190)", "0-1 rw-p, 2-3 rw-p, 8190-8192 rw-p", ""},
				{doLoad(0, p(8190), 8), "ok 8", "=", one[page : page+8]},
				{doLoad(0, p(8191), 8), "ok 8", "=", zeros(8)},
				{doLoad(0, p(1), 8), "SEGV_MAPERR 0", "=", ""},
				{doRemap(p(0), page, 512*page, mayMove, 0), "ok p(7169)", "", ""}, // at a multiple of 2 MiB
			}
		}, huge: true},
		{name: "fixed, over something, with another length", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doMap(p(8), 4*page, r_, fixedAnon), "ok", "", ""},
				{doRemap(p(0), 2*page, 3*page, moveTo, p(9)), "ok p(9)", "2-3 rw-p, 8-9 r--p, 9-12 rw-p", ""},
				{doLoad(0, p(10), 8), "ok 8", "=", one[page : page+8]},
				{doRemap(p(8), 4*page, page, moveTo, p(20)), "ok p(20)", "2-3 rw-p, 20-21 r--p", ""},
				{doRemap(p(2), page, page, moveTo, p(20)), "ok p(20)", "20-21 rw-p", ""},
				{doLoad(0, p(20), 8), "ok 8", "=", one[2*page : 2*page+8]},
			}
		}},
		{name: "over whole tables", steps: func(p func(int) addr.GVA) []step {
			return []step{ // found by TestOracle: they went with what was there
				{doMap(p(0), page, rw, sharedAnon), "ok", "", ""},
				{doMap(p(4107), 256*page, rw, fixedAnon), "ok", "", ""},
				{doStore(0, p(0), 8, 1), "ok 8", "", ""},
				{doStore(0, p(4108), 8, 1), "ok 8", "", ""},
				{doRemap(p(0), page, 512*page, moveTo, p(4097)), "ok p(4097)", "4097-4609 rw-s", ""},
				{doLoad(0, p(4097), 8), "ok 8", "=", one[:8]},
			}
		}},
		{name: "several areas and their holes", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(p(3), page, r_, sharedAnon), "ok", "", ""},
				{doMapFile(p(5), page, rw, MapPrivate|MapFixed, fourPages, page), "ok", "0-3 rw-p, 3-4 r--s, 5-6 rw-p", ""},
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doStore(0, p(5), 8, 2), "ok", "", ""},
				{doMap(p(20), 8*page, rx, fixedAnon), "ok", "0-3 rw-p, 3-4 r--s, 5-6 rw-p, 20-28 r-xp", ""},
				{doRemap(p(1), 6*page, 6*page, moveTo, p(21)), "ok p(21)",
					"0-1 rw-p, 20-21 r-xp, 21-23 rw-p, 23-24 r--s, 24-25 r-xp, 25-26 rw-p, 26-28 r-xp", ""},
				{doLoad(0, p(22), 8), "ok 8", "=", one[2*page : 2*page+8]},
				{doLoad(0, p(25), 8), "ok 8", "=", bytesOf(2, 8)},
				{doRemap(p(24)+0, 2*page, 2*page, moveTo|RemapDontUnmap, p(40)), "ok p(40)", "", ""},
				{doRemap(p(21), 3*page, 3*page, dontUnmap, 0), "EFAULT", "=", ""},
			}
		}},
		{name: "the source stays", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doRemap(p(0), 2*page, 2*page, dontUnmap, p(10)), "ok p(10)", "0-3 rw-p, 10-12 rw-p", ""}, // a hint
				{doLoad(0, p(1), 8), "ok 8", "=", zeros(8)},
				{doLoad(0, p(11), 8), "ok 8", "=", one[page : page+8]},
				{doMap(p(20), 2*page, rw, sharedAnon), "ok", "", ""},
				{doStore(0, p(20), 8, 1), "ok", "", ""},
				{doRemap(p(20), 2*page, 2*page, dontUnmap|RemapFixed, p(30)), "ok p(30)", "0-3 rw-p, 10-12 rw-p, 20-22 rw-s, 30-32 rw-s", ""},
				{doStore(0, p(31), 8, 1), "ok", "", ""},
				{doLoad(0, p(20), 8), "ok 8", "=", one[:8]},
				{doLoad(0, p(21), 8), "ok 8", "=", one[:8]},
			}
		}},
		{name: "a second view", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 3*page, rw, sharedAnon), "ok", "0-3 rw-s", ""},
				{doRemap(p(1), 0, 2*page, 0, 0), "ENOMEM", "=", ""},
				{doRemap(p(1), 0, 3*page, moveTo, p(10)), "ok p(10)", "0-3 rw-s, 10-13 rw-s", ""},
				{doStore(0, p(10), 8, 1), "ok", "", ""},
				{doLoad(0, p(1), 8), "ok 8", "=", one[:8]},
				{doUnmap(p(0), 3*page), "ok", "10-13 rw-s", ""},
				{doLoad(0, p(10), 8), "ok 8", "=", one[:8]},
				{doLoad(0, p(12), 8), "SIGBUS 0", "=", ""}, // past the end of the object
			}
		}},
		{name: "of forked spaces", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doFork(0, 1), "ok", "", ""},
				{doRemap(p(0), 3*page, 3*page, moveTo, p(600)), "ok", "600-603 rw-p", ""},
				{doStore(0, p(601), 8, 2), "ok", "", ""},
				{doLoad(1, p(1), 8), "ok 8", "0-3 rw-p", one[page : page+8]},
				{op{kind: opRemap, space: 1, at: p(1), length: page, off: 2 * page, flags: MapFlags(mayMove)}, "ok p(8190)", "", ""},
				{doLoad(1, p(8190), 8), "ok 8", "", one[page : page+8]},
				{doStore(1, p(8190), 8, 3), "ok", "", ""},
				{doLoad(0, p(601), 8), "ok 8", "", bytesOf(2, 8)},
				{doFork(0, 2), "ok", "", ""},
				{doClose(0), "ok", "", ""},
				{op{kind: opRemap, space: 2, at: p(600), length: 3 * page, off: 3 * page, flags: MapFlags(moveTo), to: p(0)}, "ok", "0-3 rw-p", ""},
				{doLoad(2, p(2), 8), "ok 8", "", one[2*page : 2*page+8]},
			}
		}},
	})
}
