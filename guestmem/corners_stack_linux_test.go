//go:build amd64

package guestmem

import (
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

const stackFlags = MapPrivate | MapAnonymous | MapFixed | MapGrowsDown

func TestCornersStack(t *testing.T) {
	const guard = stackGuardGap / page
	runCorners(t, []corner{
		{name: "what may grow", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(10), page, rw, MapShared|MapAnonymous|MapFixed|MapGrowsDown), "EINVAL", " ", ""},
				{doMapFile(p(10), page, rw, MapPrivate|MapFixed|MapGrowsDown, fourPages, 0), "EINVAL", " ", ""},
				{doMap(p(10), page, rw, stackFlags), "ok p(10)", "10-11 rw-p", ""},
			}
		}},
		{name: "every access grows it", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(1000), page, rw, stackFlags), "ok", "1000-1001 rw-p", ""},
				{doStore(0, p(999), 8, 1), "ok 8", "999-1001 rw-p", ""},
				{doLoad(0, p(997), 8), "ok 8", "997-1001 rw-p", zeros(8)},
				{doRead(0, p(995), 8), "ok 8", "995-1001 rw-p", ""},
				{doWrite(0, p(990)-3, 20, 1), "ok 20", "989-1001 rw-p", ""},
				{doTouch(p(980), Write), "ok", "980-1001 rw-p", ""},
				{doTouch(p(970), Execute), "", "970-1001 rw-p", ""},
				{op{kind: opSwap64, at: p(960)}, "ok", "960-1001 rw-p", ""},
				{op{kind: opString, at: p(950), length: 4096}, "ok", "950-1001 rw-p", ""},
				{doRead(0, p(940), 0), "ok 0", "=", ""},
				{doDiscard(p(930), page), "ENOMEM", "=", ""},
				{doProtect(p(930), page, r_), "ENOMEM", "=", ""},
			}
		}},
		{name: "it grows before the access is looked at", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(1000), page, r_, stackFlags), "ok", "1000-1001 r--p", ""},
				{doStore(0, p(998), 8, 1), "SEGV_ACCERR 0", "998-1001 r--p", ""},
				{doWrite(0, p(996), 8, 1), "EFAULT", "996-1001 r--p", ""},
				{doMap(p(2000), page, ProtNone, stackFlags), "ok", "", ""},
				{doLoad(0, p(1999), 8), "SEGV_ACCERR 0", "996-1001 r--p, 1999-2001 ---p", ""},
			}
		}},
		{name: "the guard gap", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(1000), page, rw, stackFlags), "ok", "", ""},
				{doMap(p(500), page, rw, fixedAnon), "ok", "500-501 rw-p, 1000-1001 rw-p", ""},
				{doStore(0, p(501+guard-1), 8, 1), "SEGV_MAPERR 0", "=", ""},
				{doWrite(0, p(501+guard-1), 8, 1), "EFAULT", "=", ""},
				{doStore(0, p(501+guard), 8, 1), "ok 8", "500-501 rw-p, 757-1001 rw-p", ""},
				{doProtect(p(500), page, ProtNone), "ok", "", ""}, // no area that could be hit
				{doStore(0, p(501), 8, 1), "ok 8", "500-501 ---p, 501-1001 rw-p", ""},
			}
		}},
		{name: "two stacks", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(1000), page, rw, stackFlags), "ok", "", ""},
				{doMap(p(990), page, r_, stackFlags), "ok", "", ""},
				{doStore(0, p(991), 8, 1), "ok 8", "990-991 r--p, 991-1001 rw-p", ""},
				{doLoad(0, p(980), 8), "ok 8", "980-991 r--p, 991-1001 rw-p", ""},
			}
		}},
		{name: "how large", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(8000), page, rw, stackFlags), "ok", "", ""},
				{doStore(0, p(8001-2049), 8, 1), "SEGV_MAPERR 0", "8000-8001 rw-p", ""},
				{doStore(0, p(8001-2048), 8, 1), "ok 8", "5953-8001 rw-p", ""},
				{doStore(0, p(8001-2049), 8, 1), "SEGV_MAPERR 0", "=", ""},
			}
		}},
		{name: "nothing is placed in the gap", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(8180), page, rw, stackFlags), "ok", "", ""},
				{doMap(0, 11*page, r_, anon), "ok p(8181)", "", ""},
				{doMap(0, page, r_, anon), "ok p(7923)", "", ""},             // below the gap
				{doMap(p(8179), page, r_, anon), "ok p(7922)", "", ""},       // no hint in it
				{doMap(p(8000), page, r_, fixedAnon), "ok p(8000)", "", ""},  // but a fixed address
				{doRemap(p(8000), page, 2*page, 0, 0), "ok p(8000)", "", ""}, // and what grows
				{doRemap(p(8000), page, 300*page, mayMove, 0), "", "", ""},   // and moves
				{doStore(0, p(8179), 8, 1), "SEGV_MAPERR 0", "=", ""},
			}
		}},
		{name: "from below", window: "up", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(20), page, rw, stackFlags), "ok", "", ""},
				{doMap(0, page, r_, anon), "ok", "", ""},
				{doMap(p(2), page, r_, anon), "ok", "", ""},
				{doMap(p(1000), page, rw, stackFlags), "ok", "", ""},
				{doMap(p(900), page, r_, fixedAnon), "ok", "", ""},
				{doMap(0, 30*page, r_, anon), "ok p(23)", "", ""},
				{doMap(0, 800*page, r_, anon), "ok p(53)", "", ""},  // what follows is no stack
				{doMap(0, 99*page, r_, anon), "ok p(1001)", "", ""}, // it is
				{doMap(0, 40*page, r_, anon), "ok p(853)", "", ""},
			}
		}},
		{name: "something is in the gap", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 7900*page, r_, fixedAnon), "ok", "", ""},
				{doMap(p(8100), page, r_, fixedAnon), "ok", "", ""},
				{doMap(p(8180), page, rw, stackFlags), "ok", "0-7900 r--p, 8100-8101 r--p, 8180-8181 rw-p", ""},
				{doMap(0, 30*page, rx, anon), "ok p(7900)", "", ""}, // below the gap it is too long: from the bottom
				{doUnmap(p(7900), 30*page), "ok", "", ""},
				{doMap(0, 12*page, rw, anon), "ok p(7912)", "", ""}, // below the gap, past what is free in it
				{doMap(0, 12*page, rw, anon), "ok p(7900)", "0-7900 r--p, 7900-7924 rw-p, 8100-8101 r--p, 8180-8181 rw-p", ""},
				{doMap(0, 12*page, rw, anon), "ok p(7924)", "", ""}, // in it, from the bottom
				{doMap(p(8000), page, rw, anon), "ok p(8000)", "", ""},
				{doMap(p(8099), page, rw, anon), "ok p(8099)", "", ""}, // what follows is no stack
				{doMap(p(8101), page, rw, anon), "ok p(8191)", "", ""}, // it is
				{doMap(0, 100*page, rw, anon), "ENOMEM", "=", ""},
			}
		}},
		{name: "two stacks, one in the gap of the other", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 7000*page, r_, fixedAnon), "ok", "", ""},
				{doMap(p(8000), page, r_, stackFlags), "ok", "", ""},
				{doMap(p(8191), page, rw, stackFlags), "ok", "0-7000 r--p, 8000-8001 r--p, 8191-8192 rw-p", ""},
				{doMap(0, page, rw, anon), "ok p(7743)", "", ""},
				{doMap(0, 743*page, r_, anon), "ok p(7000)", "0-7743 r--p, 7743-7744 rw-p, 8000-8001 r--p, 8191-8192 rw-p", ""},
				{doMap(0, page, rw, anon), "ENOMEM", "=", ""},
			}
		}},
		{name: "a gap that has no beginning", window: "whole", steps: func(p func(int) addr.GVA) []step {
			// Page 7 is less than 1 MiB above address 0.
			all := uint64(mmapBase - p(7))
			mid := int(all / page / 2)
			return []step{
				{doMap(p(7), all, rw, stackFlags|MapNoReserve), "ok p(7)", "", ""},
				{doUnmap(p(mid), 42*page), "ok", "", ""},
				{doMap(0, page, rw, anon), "ENOMEM", "=", ""},
				{doMap(p(mid+22), page, r_, fixedAnon), "ok", "", ""},
				{doMap(0, page, rw, anon), "ENOMEM", "=", ""}, // though there is room in the other's gap
				{doMap(0, 7*page, rw, anon), "ENOMEM", "=", ""},
				{doMap(p(3), page, rw, anon), "ENOMEM", "=", ""},
				{doMap(0, 8*page, rw, anon), fmt.Sprintf("ok p(%d)", mid), "", ""},                // too long for what is below page 7
				{doMap(p(mid+10), 8*page, rw, anon), fmt.Sprintf("ok p(%d)", mid+10), "", ""},     // a hint
				{doRemap(p(mid+22), page, 2*page, 0, 0), fmt.Sprintf("ok p(%d)", mid+22), "", ""}, // in place
				{doRemap(p(mid+22), 2*page, 4*page, mayMove, 0), fmt.Sprintf("ok p(%d)", mid+22), "", ""},
				{doRemap(p(mid+10), page, 2*page, mayMove, 0), "", "", ""},
			}
		}},
		{name: "the heap", steps: func(p func(int) addr.GVA) []step {
			const heap = 4096 + 40
			return []step{
				{doMap(p(heap+300), page, rw, stackFlags), "ok", "", ""},
				{doBrk(p(heap + 43)), "ok p(4179)", "", ""},
				{doBrk(p(heap + 44)), "ok p(4179)", "", ""},
			}
		}},
		{name: "it moves, and forks", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(1000), page, rw, stackFlags), "ok", "", ""},
				{doStore(0, p(1000), 8, 1), "ok", "", ""},
				{doFork(0, 1), "ok", "", ""},
				{doStore(1, p(998), 8, 2), "ok 8", "998-1001 rw-p", ""},
				{doRemap(p(1000), page, page, moveTo, p(2000)), "ok", "2000-2001 rw-p", ""},
				{doStore(0, p(1999), 8, 3), "ok 8", "1999-2001 rw-p", ""},
				{doLoad(0, p(2000), 8), "ok 8", "=", bytesOf(1, 8)},
				{doLoad(0, p(998), 8), "ok 8", "998-2001 rw-p", zeros(8)},
			}
		}},
	})
}

func TestCornersProtectGrowing(t *testing.T) {
	runCorners(t, []corner{{steps: func(p func(int) addr.GVA) []step {
		return []step{
			{doMap(p(1000), 4*page, rw, stackFlags), "ok", "", ""},
			{doMap(p(1006), 2*page, rw, fixedAnon), "ok", "1000-1004 rw-p, 1006-1008 rw-p", ""},
			{doProtect(p(1002)+1, page, r_|protGrows), "EINVAL", "=", ""}, // both ways
			{doProtect(p(1002), 0, r_|protGrows), "EINVAL", "=", ""},
			{doProtect(p(1002), 0, r_|ProtGrowsDown), "ok", "=", ""},
			{doProtect(p(1002), page, r_|protGrowsUp), "EINVAL", "=", ""},
			{doProtect(p(999), page, r_|protGrowsUp), "ENOMEM", "=", ""},
			{doProtect(p(998), 2*page, r_|ProtGrowsDown), "ENOMEM", "=", ""},
			{doProtect(p(1006), page, r_|ProtGrowsDown), "EINVAL", "=", ""},
			{doProtect(p(1002), page, r_|ProtGrowsDown), "ok", "1000-1003 r--p, 1003-1004 rw-p, 1006-1008 rw-p", ""},
			{doProtect(p(990), 11*page, rw|ProtGrowsDown), "ok", "1000-1001 rw-p, 1001-1003 r--p, 1003-1004 rw-p, 1006-1008 rw-p", ""},
			{doProtect(p(1003), 4*page, rx|ProtGrowsDown), "ENOMEM", "1000-1001 rw-p, 1001-1003 r--p, 1003-1004 r-xp, 1006-1008 rw-p", ""},
		}
	}}})
}

func TestCornersMap32Bit(t *testing.T) {
	const low = 0x40000000/page - 0x10000/page // page of the window at which 1 GiB begins
	runCorners(t, []corner{
		{name: "placed", window: "whole", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(0, page, rw, anon|Map32Bit), "ok p(262128)", "", ""},
				{doMap(0, 2*page, rw, anon|Map32Bit), "ok p(262129)", "", ""},
				{doMap(0x40000000, page, rw, anon|Map32Bit), "ok p(262131)", "", ""},
				{doMap(0x30000000, page, rw, anon|Map32Bit), "ok", "", ""},   // a hint below
				{doMap(0x7ffff000, page, rw, anon|Map32Bit), "ok", "", ""},   // the last page
				{doMap(0x7ffff000, 2*page, rw, anon|Map32Bit), "ok", "", ""}, // would end beyond
				{doMap(p(low)+1<<30, page, rw, anon|Map32Bit), "ok", "", ""}, // beyond
				{doMap(0, 0x40000000, rw, anon|Map32Bit|MapNoReserve), "ENOMEM", "", ""},
				{doMap(0, 0x80001000, rw, anon|Map32Bit|MapNoReserve), "ENOMEM", "", ""},
				{doMap(1<<40, page, rw, fixedAnon|Map32Bit), "ok", "", ""}, // means nothing then
			}
		}},
		{name: "whole 2 MiB", window: "whole", huge: true, steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(0, 2<<20, rw, anon|Map32Bit), "ok", "", ""},
				{doMap(0, 2<<20, rw, anon|Map32Bit), "ok", "", ""},
				{doMap(0, page, rw, anon|Map32Bit), "ok", "", ""},
			}
		}},
		{name: "no room there", steps: func(p func(int) addr.GVA) []step {
			return []step{{doMap(0, page, rw, anon|Map32Bit), "ENOMEM", " ", ""}}
		}},
	})
}
