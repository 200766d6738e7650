//go:build amd64

package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func TestCornersUnmap(t *testing.T) {
	two := func(p func(int) addr.GVA) []step {
		return []step{three(p), {doMap(p(5), 3*page, r_, fixedAnon), "ok", "0-3 rw-p, 5-8 r--p", ""}}
	}
	runCorners(t, []corner{
		{name: "refused", steps: func(p func(int) addr.GVA) []step {
			return append(two(p),
				step{doUnmap(p(0)+1, page), "EINVAL", "=", ""},
				step{doUnmap(p(0), 0), "EINVAL", "=", ""},
				step{doUnmap(p(20), 0), "EINVAL", "=", ""},
				step{doUnmap(p(0), ^uint64(0)), "EINVAL", "=", ""},
				step{doUnmap(p(0), -uint64(p(0))), "EINVAL", "=", ""},
				step{doUnmap(p(0), 1<<47), "EINVAL", "=", ""},
				step{doUnmap(p(8191), 2*page), "EINVAL", "=", ""},
				step{doUnmap(1<<47, page), "EINVAL", "=", ""},
				step{doUnmap(1<<63, page), "EINVAL", "=", ""},
			)
		}},
		{name: "holes", steps: func(p func(int) addr.GVA) []step {
			return append(two(p),
				step{doUnmap(p(100), page), "ok", "=", ""},
				step{doUnmap(p(3), 2*page), "ok", "=", ""},
				step{doUnmap(p(2), 4*page), "ok", "0-2 rw-p, 6-8 r--p", ""},
				step{doUnmap(p(0), 8192*page), "ok", " ", ""},
			)
		}},
		{name: "from 0 to the end", window: "whole", steps: func(p func(int) addr.GVA) []step {
			return append(two(p), step{doUnmap(0, uint64(p(9))), "ok", " ", ""})
		}},
		{name: "edges and middle", steps: func(p func(int) addr.GVA) []step {
			return append(two(p),
				step{doUnmap(p(5), 1), "ok", "0-3 rw-p, 6-8 r--p", ""}, // rounded up
				step{doUnmap(p(1), page), "ok", "0-1 rw-p, 2-3 rw-p, 6-8 r--p", ""},
				step{doStore(0, p(0)+4090, 10, 1), "SEGV_MAPERR 6", "=", ""},
				step{doMap(p(1), page, rw, fixedAnon), "ok", "0-3 rw-p, 6-8 r--p", ""},
				step{doLoad(0, p(1), 8), "ok 8", "=", zeros(8)},
			)
		}},
	})
}

func TestCornersProtect(t *testing.T) {
	two := func(p func(int) addr.GVA) []step {
		return []step{three(p), {doMap(p(5), 3*page, r_, fixedAnon), "ok", "0-3 rw-p, 5-8 r--p", ""}}
	}
	runCorners(t, []corner{
		{name: "refused", steps: func(p func(int) addr.GVA) []step {
			return append(two(p),
				step{doProtect(p(0)+1, page, r_), "EINVAL", "=", ""},
				step{doProtect(p(0)+1, 0, r_), "EINVAL", "=", ""},
				step{doProtect(p(0), 0, 0x80), "ok", "=", ""}, // before the protection is looked at
				step{doProtect(p(3), 0, r_), "ok", "=", ""},
				step{doProtect(p(0), -uint64(p(0)), r_), "ENOMEM", "=", ""},
				step{doProtect(p(0), ^uint64(0), 0x80), "ENOMEM", "=", ""},
				step{doProtect(p(0), page, 0x80), "EINVAL", "=", ""},
				step{doProtect(p(0), page, 0x10), "EINVAL", "=", ""},
				step{doProtect(p(3), page, 0x80), "EINVAL", "=", ""},
				step{doProtect(p(3), 3*page, rw), "ENOMEM", "=", ""}, // starts in a hole
				step{doProtect(1<<63, page, r_), "ENOMEM", "=", ""},
				step{doProtect(1<<47, page, r_), "ENOMEM", "=", ""},
			)
		}},
		{name: "a hole later: the head stays changed", steps: func(p func(int) addr.GVA) []step {
			return append(two(p),
				step{doWrite(0, p(0), 3*page, 1), "ok", "=", ""},
				step{doProtect(p(1), 7*page, rx), "ENOMEM", "0-1 rw-p, 1-3 r-xp, 5-8 r--p", ""},
				step{doStore(0, p(1)-3, 10, 2), "SEGV_ACCERR 3", "=", ""},
				step{doProtect(p(7), 1<<46, ProtNone), "ENOMEM", "0-1 rw-p, 1-3 r-xp, 5-7 r--p, 7-8 ---p", ""},
			)
		}},
		{name: "over several areas", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doMap(p(3), 2*page, r_, sharedAnon), "ok", "0-3 rw-p, 3-5 r--s", ""},
				{doMapFile(p(5), 2*page, r_, MapPrivate|MapFixed, fourPages, 0), "ok", "0-3 rw-p, 3-5 r--s, 5-7 r--p", ""},
				{doProtect(p(2), 4*page, rw|8), "ok", "0-3 rw-p, 3-5 rw-s, 5-6 rw-p, 6-7 r--p", ""},
				{doStore(0, p(5), 8, 1), "ok 8", "=", ""},
				{doProtect(p(0), 7*page, ProtNone), "ok", "0-3 ---p, 3-5 ---s, 5-7 ---p", ""},
				{doTouch(p(0), Read), "SEGV_ACCERR", "=", ""},
				{doTouch(p(3), Write), "SEGV_ACCERR", "=", ""},
				{doProtect(p(0), 7*page, r_), "ok", "0-3 r--p, 3-5 r--s, 5-7 r--p", ""},
				{doLoad(0, p(5), 8), "ok 8", "=", bytesOf(1, 8)}, // was written, and still is
			}
		}},
	})
}

func TestCornersDiscard(t *testing.T) {
	runCorners(t, []corner{
		{name: "refused", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doDiscard(p(0)+1, page), "EINVAL", "=", ""},
				{doDiscard(p(0)+1, 0), "EINVAL", "=", ""},
				{doDiscard(p(3), 0), "ok", "=", ""}, // on a hole
				{doDiscard(p(0), ^uint64(0)), "EINVAL", "=", ""},
				{doDiscard(p(0), minusPage), "EINVAL", "=", ""},
				{doDiscard(p(3), page), "ENOMEM", "=", ""},
				{doDiscard(1<<63, page), "ENOMEM", "=", ""},
				{doDiscard(1<<47, page), "ENOMEM", "=", ""},
			}
		}},
		{name: "over a hole all mapped parts are done", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), page, rw, fixedAnon), "ok", "", ""},
				{doMap(p(2), page, rw, fixedAnon), "ok", "", ""},
				{doMap(p(3), page, rw, sharedAnon), "ok", "", ""},
				{doMapFile(p(4), page, rw, MapPrivate|MapFixed, fourPages, 0), "ok", "", ""},
				{doStore(0, p(0), page, 1), "ok 4096", "", ""},
				{doStore(0, p(2), 3*page, 1), "ok 12288", "", ""},
				{doProtect(p(2), page, ProtNone), "ok", "", ""},
				{doDiscard(p(0), 5*page), "ENOMEM", "=", ""},
				{doProtect(p(2), page, r_), "ok", "", ""},
				{doLoad(0, p(0), 8), "ok 8", "", zeros(8)},
				{doLoad(0, p(2), 8), "ok 8", "", zeros(8)},
				{doLoad(0, p(3), 8), "ok 8", "", bytesOf(1, 3*page)[page : page+8]}, // shared keeps its data
				{doLoad(0, p(4), 8), "ok 8", "", bytesOf(79, 8)},                    // of a file: as the file has it
			}
		}},
	})
}

func TestCornersBrk(t *testing.T) {
	const heap = 4096 + 40 // its first page
	runCorners(t, []corner{
		{name: "grow and shrink", steps: func(p func(int) addr.GVA) []step {
			h := func(n int) addr.GVA { return p(heap + n) }
			return []step{
				{doBrk(0), "ok p(4136)", " ", ""},
				{doBrk(h(0) - 1), "ok p(4136)", " ", ""},
				{doBrk(h(1) + 5), "ok p(4137)+5", "4136-4138 rw-p", ""},
				{doStore(0, h(1), 10, 1), "ok 10", "=", ""},
				{doBrk(h(2)), "ok p(4138)", "=", ""},
				{doBrk(h(4)), "ok p(4140)", "4136-4140 rw-p", ""},
				{doBrk(^addr.GVA(0)), "ok p(4140)", "=", ""},
				{doBrk(1 << 47), "ok p(4140)", "=", ""},
				{doBrk(1 << 63), "ok p(4140)", "=", ""},
				{doBrk(h(1) + 5), "ok p(4137)+5", "4136-4138 rw-p", ""},
				{doLoad(0, h(1), 10), "ok 10", "=", bytesOf(1, 10)},
				{doBrk(h(1)), "ok p(4137)", "4136-4137 rw-p", ""},
				{doBrk(h(2)), "ok p(4138)", "4136-4138 rw-p", ""},
				{doLoad(0, h(1), 10), "ok 10", "=", zeros(10)},
				{doBrk(h(0)), "ok p(4136)", " ", ""},
			}
		}},
		{name: "a page stays free above", steps: func(p func(int) addr.GVA) []step {
			h := func(n int) addr.GVA { return p(heap + n) }
			return []step{
				{doMap(h(6), page, r_, fixedAnon), "ok", "4142-4143 r--p", ""},
				{doBrk(h(7)), "ok p(4136)", "=", ""},
				{doBrk(h(6)), "ok p(4136)", "=", ""},
				{doBrk(h(5) + 1), "ok p(4136)", "=", ""},
				{doBrk(h(5)), "ok p(4141)", "4136-4141 rw-p, 4142-4143 r--p", ""},
			}
		}},
		{name: "what lies in the heap", steps: func(p func(int) addr.GVA) []step {
			h := func(n int) addr.GVA { return p(heap + n) }
			return []step{
				{doBrk(h(6)), "ok", "4136-4142 rw-p", ""},
				{doUnmap(h(1), page), "ok", "", ""},
				{doMap(h(2), page, r_, fixedAnon), "ok", "4136-4137 rw-p, 4138-4139 r--p, 4139-4142 rw-p", ""},
				{doBrk(h(8)), "ok p(4144)", "4136-4137 rw-p, 4138-4139 r--p, 4139-4144 rw-p", ""},
				{doBrk(h(2)), "ok p(4138)", "4136-4137 rw-p", ""}, // whatever it is
				{doBrk(h(1)), "ok p(4138)", "=", ""},              // nothing there to give back
				{doBrk(h(0)), "ok p(4136)", " ", ""},
			}
		}},
		{name: "the break is each process's own", steps: func(p func(int) addr.GVA) []step {
			h := func(n int) addr.GVA { return p(heap + n) }
			return []step{
				{doBrk(h(2)), "ok", "4136-4138 rw-p", ""},
				{doFork(0, 1), "ok", "=", ""},
				{op{kind: opBrk, space: 1, at: h(5)}, "ok p(4141)", "4136-4141 rw-p", ""},
				{doBrk(0), "ok p(4138)", "4136-4138 rw-p", ""},
			}
		}},
	})
}

func TestCornersAccess(t *testing.T) {
	var cases []corner
	for prot := range rw | ProtExec + 1 {
		readable, writable := prot != ProtNone, prot&ProtWrite != 0
		cases = append(cases, corner{name: prot.String(), steps: func(p func(int) addr.GVA) []step {
			load, store, read, write := "ok 20", "ok 20", "ok 20", "ok 20"
			if !readable {
				load, read = "SEGV_ACCERR 7", "ok 7"
			}
			if !writable {
				store, write = "SEGV_ACCERR 7", "ok 7"
			}
			steps := []step{
				{doMap(p(0), 2*page, rw, fixedAnon), "ok", "", ""},
				{doWrite(0, p(0), 3*page, 16), "ok 8192", "", ""}, // into a hole; all RET
				{doProtect(p(1), page, prot), "ok", "", ""},
			}
			for range 2 { // once on what was written, once on what never was
				steps = append(steps,
					step{doLoad(0, p(1)-7, 20), load, "=", ""},
					step{doRead(0, p(1)-7, 20), read, "=", ""},
					step{doStore(0, p(1)-7, 20, 16), store, "=", ""},
					step{doWrite(0, p(1)-7, 20, 16), write, "=", ""},
					step{doRead(0, p(1), 0), "ok 0", "=", ""},
					step{doTouch(p(1), Read), "", "=", ""},
					step{doTouch(p(1), Write), "", "=", ""},
					step{doTouch(p(1), Execute), "", "=", ""},
					step{doLoad(0, p(2)-3, 9), "", "=", ""}, // into a hole
					step{doWrite(0, p(2)-3, 9, 1), "", "=", ""},
					step{op{kind: opString, at: p(1) - 7, length: 4096}, "", "=", ""},
					step{op{kind: opLoad64, at: p(1)}, "", "=", ""},
					step{op{kind: opSwap64, at: p(1), data: 5}, "", "=", ""},
					step{op{kind: opStore32, at: p(1) + 8, data: 5}, "", "=", ""},
					step{op{kind: opPopulate, at: p(0), length: 2 * page, prot: Write}, "", "=", ""},
					step{doDiscard(p(1), page), "ok", "=", ""},
				)
			}
			return steps
		}})
	}
	cases = append(cases, corner{name: "nowhere", window: "whole", steps: func(func(int) addr.GVA) (steps []step) {
		for _, at := range []addr.GVA{0, 8, 1 << 47, 1<<47 - 8, 1 << 63, ^addr.GVA(7)} {
			steps = append(steps,
				step{doLoad(0, at, 8), "SEGV_MAPERR 0", "", ""},
				step{doStore(0, at, 8, 1), "SEGV_MAPERR 0", "", ""},
				step{doRead(0, at, 8), "EFAULT", "", ""},
				step{doWrite(0, at, 8, 1), "EFAULT", "", ""},
				step{op{kind: opSwap64, at: at}, "SEGV_MAPERR", "", ""},
				step{doTouch(at, Execute), "SEGV_MAPERR", "", ""},
				step{op{kind: opString, at: at, length: 4096}, "SEGV_MAPERR", "", ""},
			)
		}
		return steps
	}}, corner{name: "strings", steps: func(p func(int) addr.GVA) []step {
		str := func(at addr.GVA, n uint64) op { return op{kind: opString, at: at, length: n} }
		return []step{
			{doMap(p(0), 2*page, rw, fixedAnon), "ok", "", ""},
			{doStore(0, p(0), 2*page, 1), "ok", "", ""}, // no zero byte
			{str(p(0), 10), "ENAMETOOLONG", "", ""},
			{str(p(0)+7, 4096), "ENAMETOOLONG", "", ""},
			{str(p(1)+7, 4096), "SEGV_MAPERR", "", ""},
			{doDiscard(p(1), page), "ok", "", ""},
			{str(p(0)+7, 4096), "ok 4089", "", ""},
			{str(p(0)+7, 4089), "ENAMETOOLONG", "", ""},
			{str(p(1), 4096), "ok 0", "", ""},
		}
	}})
	runCorners(t, cases)
}

func TestCornersFork(t *testing.T) {
	one := bytesOf(1, 8)
	runCorners(t, []corner{
		{name: "private is copied, shared is shared", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 2*page, rw, fixedAnon), "ok", "", ""},
				{doMap(p(2), 2*page, rw, sharedAnon), "ok", "", ""},
				{doMapFile(p(4), 2*page, rw, MapPrivate|MapFixed, fourPages, 0), "ok", "0-2 rw-p, 2-4 rw-s, 4-6 rw-p", ""},
				{doStore(0, p(0), 8, 1), "ok", "", ""},
				{doStore(0, p(2), 8, 1), "ok", "", ""},
				{doStore(0, p(4), 8, 1), "ok", "", ""},
				{doFork(0, 1), "ok", "", ""},
				{doLoad(1, p(0), 8), "ok 8", "0-2 rw-p, 2-4 rw-s, 4-6 rw-p", one},
				{doLoad(1, p(4), 8), "ok 8", "", one},
				{doStore(0, p(0), 8, 2), "ok", "", ""},
				{doStore(0, p(2), 8, 2), "ok", "", ""},
				{doStore(0, p(4), 8, 2), "ok", "", ""},
				{doLoad(1, p(0), 8), "ok 8", "", one},
				{doLoad(1, p(2), 8), "ok 8", "", bytesOf(2, 8)},
				{doLoad(1, p(4), 8), "ok 8", "", one},
				{doStore(1, p(3), 8, 3), "ok", "", ""}, // neither had touched it
				{doLoad(0, p(3), 8), "ok 8", "", bytesOf(3, 8)},
				{doStore(1, p(1), 8, 3), "ok", "", ""},
				{doLoad(0, p(1), 8), "ok 8", "", zeros(8)},
			}
		}},
		{name: "what one does to its layout the other does not see", steps: func(p func(int) addr.GVA) []step {
			return []step{
				three(p),
				{doStore(0, p(0), 3*page, 1), "ok", "", ""},
				{doFork(0, 1), "ok", "", ""},
				{doFork(1, 2), "ok", "", ""},
				{doUnmap(p(0), page), "ok", "1-3 rw-p", ""},
				{op{kind: opProtect, space: 1, at: p(1), length: page, prot: r_}, "ok", "0-1 rw-p, 1-2 r--p, 2-3 rw-p", ""},
				{op{kind: opDiscard, space: 2, at: p(2), length: page}, "ok", "0-3 rw-p", ""},
				{doLoad(1, p(0), 8), "ok 8", "", one},
				{doLoad(2, p(2), 8), "ok 8", "", zeros(8)},
				{doLoad(0, p(2), 8), "ok 8", "", bytesOf(1, 3*page)[2*page : 2*page+8]},
				{doClose(0), "ok", "", ""},
				{doStore(2, p(1), 8, 2), "ok 8", "", ""},
				{doStore(1, p(1), 8, 2), "SEGV_ACCERR 0", "", ""},
				{doFork(2, 0), "ok", "", ""},
				{doLoad(0, p(1), 8), "ok 8", "0-3 rw-p", bytesOf(2, 8)},
			}
		}},
		{name: "a shared area outlives who made it", steps: func(p func(int) addr.GVA) []step {
			return []step{
				{doMap(p(0), 2*page, rw, sharedAnon), "ok", "", ""},
				{doFork(0, 3), "ok", "", ""},
				{doStore(0, p(1), 8, 1), "ok", "", ""},
				{doClose(0), "ok", "", ""},
				{doLoad(3, p(1), 8), "ok 8", "0-2 rw-s", one},
				{op{kind: opUnmap, space: 3, at: p(0), length: page}, "ok", "1-2 rw-s", ""},
				{doLoad(3, p(1), 8), "ok 8", "", one},
				{op{kind: opDiscard, space: 3, at: p(1), length: page}, "ok", "", ""},
				{doLoad(3, p(1), 8), "ok 8", "", one},
			}
		}},
	})
}
