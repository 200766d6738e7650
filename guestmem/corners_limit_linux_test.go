//go:build amd64

package guestmem

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// maxMapCount is the kernel's limit of areas.
func maxMapCount(tb testing.TB) int {
	b, err := os.ReadFile("/proc/sys/vm/max_map_count")
	mustDo(tb, err)
	var n int
	_, err = fmt.Sscan(string(b), &n)
	mustDo(tb, err)
	return n
}

// areaCount is how many areas a process of the kernel's side has, those outside
// of the window too.
func (k *kernelHost) areaCount(tb testing.TB, slot int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", k.pids[slot]))
	mustDo(tb, err)
	n := strings.Count(string(b), "\n")
	if strings.Contains(string(b), "[vsyscall]") {
		n-- // is no area of the process
	}
	return n
}

// TestCornersAreaLimit fills both sides up to the kernel's own limit, and asks
// what still works there. The limit here is what is left to the window.
func TestCornersAreaLimit(t *testing.T) {
	limit := maxMapCount(t)
	if limit > 200_000 {
		t.Skipf("vm.max_map_count is %d: filling it takes too long", limit)
	}
	win := windowNamed("whole")
	k := newConfiguredHost(t, helperFile(t, helperBytes(t)), win)
	s := sequence{exclusions: activeExclusions(t), window: win}
	o, err := s.start(k)
	mustDo(t, err)
	room := limit - k.areaCount(t, 0)
	o.w.spaces[0].opts.MaxAreas = room
	base := k.view.window.Start + 1<<30
	p := func(n int) addr.GVA { return base + addr.GVA(n)*page }
	// Single pages with holes between, so that nothing merges, and six areas
	// of three pages. Where two areas are lacking, there is room for one split.
	const big = 6
	fill := []op{}
	for i := range room - big - 1 {
		fill = append(fill, doMap(p(100+2*i), page, r_, fixedAnon))
	}
	for i := range big {
		fill = append(fill, doMap(p(10*i), 3*page, rw, fixedAnon))
	}
	for len(fill) > 0 {
		n := min(maxCalls, len(fill))
		i := -1
		if diff := o.segment(func() op { i++; return fill[i] }, n, false); diff != "" {
			t.Fatal(o.abandon(diff))
		}
		fill = fill[n:]
	}
	if got := k.areaCount(t, 0); got != limit-1 {
		t.Errorf("the kernel has %d areas, the limit is %d", got, limit)
	}
	run := func(steps []step) {
		t.Helper()
		for i, st := range steps {
			// Listing all areas takes its time: once is enough.
			if diff := o.segment(func() op { return st.op }, 1, i == len(steps)-1); diff != "" {
				t.Fatalf("step %d: %s", i, o.abandon(diff))
			}
			if got := statusOf(o.last, st.op.kind, base); !strings.HasPrefix(got, st.want) {
				t.Errorf("step %d: %v: both answer %q, want %q", i, st.op, got, st.want)
			}
		}
	}
	run([]step{
		{doProtect(p(10), page, r_), "ok", "", ""}, // one more: at the limit
		{doUnmap(p(1), page), "ENOMEM", "", ""},    // splits
		{doProtect(p(1), page, r_), "ENOMEM", "", ""},
		{doProtect(p(0), page, r_), "ENOMEM", "", ""}, // splits at an edge
		{doProtect(p(0), 3*page, r_), "ok", "", ""},   // the whole area
		{doMap(p(1), page, rx, fixedAnon), "ENOMEM", "", ""},
		{doProtect(p(10), page, rw), "ok", "", ""}, // joins again: one less
		{doProtect(p(20), page, r_), "ok", "", ""}, // and at the limit again
		{doDiscard(p(20), 3*page), "ok", "", ""},
		{doUnmap(p(30), page), "ok", "", ""},   // at an edge
		{doUnmap(p(32), page), "ok", "", ""},   // at the other
		{doUnmap(p(42), 9*page), "ok", "", ""}, // ends inside of two
		{doFork(0, 1), "ok", "", ""},           // the limit is inherited
		{op{kind: opUnmap, space: 1, at: p(1), length: page}, "ENOMEM", "", ""},
		{doClose(1), "ok", "", ""},
	})
	// Maps: some kernels let in one area more.
	extra := doMap(p(90), page, rw, fixedAnon)
	answers, err := k.apply([]op{extra}, nil, nil)
	mustDo(t, err)
	if answers[0].errno == 0 {
		if _, documented := exclusionRules["D-area-limit"]; !documented {
			t.Error("the kernel maps one area more than its limit")
		}
		_, err := k.apply([]op{doUnmap(p(90), page)}, nil, nil)
		mustDo(t, err)
		o.w.spaces[0].opts.MaxAreas++
		run([]step{{extra, "ok", "", ""}})
	}
	run([]step{
		{doMap(p(92), page, rw, fixedAnon), "ENOMEM", "", ""},
		{doMap(p(91), page, rw, fixedAnon), "ENOMEM", "", ""},  // would join
		{doMap(p(0), 3*page, rw, fixedAnon), "ENOMEM", "", ""}, // over a whole area
		{doMap(p(1), page, rx, fixedAnon), "ENOMEM", "", ""},
		{doMap(p(92), page, rw, sharedAnon), "ENOMEM", "", ""},
		{doMap(0, page, rw, anon), "ENOMEM", "", ""},
		{doBrk(heapStart(k.view.window) + page), "ok", "", ""}, // the break as it was
		{doUnmap(p(1), page), "ENOMEM", "", ""},
		{doUnmap(p(0), page), "ok", "", ""},
		{doUnmap(p(100), page), "ok", "", ""}, // a whole area: one less
		{doMap(p(92), page, rw, fixedAnon), "ok", "", ""},
	})
	mustDo(t, o.w.close())
}
