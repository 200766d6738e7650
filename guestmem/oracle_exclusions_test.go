package guestmem

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// What the oracle lets pass is what docs/differences.md lists: a difference
// whose row names an oracle's scope is in force if this table says how to
// recognize it, and one of these entries is in force only if it has a row.

// pageDifference is a page that is there on one side only.
type pageDifference struct {
	at       addr.GVA
	here     bool // it is there on this side
	area     *vmarea.Area
	around   int  // the memory's FaultAround
	inObject bool // the area has an object, and that the page
	atFork   bool // it was so already when its space was forked
	zero     bool // here only: the page is empty
	huge     bool // memory has come 2 MiB at a time, or would have
}

// exclusion recognizes one difference.
type exclusion struct {
	scope string // as in the document: pages, call, draw, limit
	// page reports whether a page that one side alone has is this difference.
	page func(pageDifference) bool
	// draw changes an operation before it is run on either side; old says that
	// the kernel is one from before 6.13.
	draw func(old bool, window addr.Range, o op) op
	// call changes what the kernel is asked, where its answer would differ.
	call func(op, *kernelCall)
	// merged reports whether an answer would tell how neighbours have merged that
	// nothing visible separates: the area at op.at, in the kernel and here.
	merged func(o op, kernel, here addr.Range) bool
	// stepwise reports whether an answer would tell in what steps the areas that it
	// goes through are taken: the kernel's are lines, as it has merged them.
	stepwise func(o op, as *AddressSpace, lines []addr.Range) bool
	// beyond reports whether an operation does what cannot be compared, as things
	// are here.
	beyond func(o op, as *AddressSpace) bool
}

// exclusionRules are the differences that the oracle can recognize, by id.
var exclusionRules = map[string]exclusion{
	// A page of an object that the object has anyway: the kernel has installed
	// it around one that was touched. And empty pages that are installed ahead.
	"D-fault-around": {scope: "pages", page: func(d pageDifference) bool {
		if !d.here {
			return d.inObject
		}
		return d.around > 1 && (d.inObject || d.zero)
	}},
	// Pages that fork leaves for the child's faults: of objects, and those that
	// were read and never written.
	"D-fork-tables": {scope: "pages", page: func(d pageDifference) bool {
		return d.here && d.atFork && (d.zero || d.area != nil && d.area.Backing != nil)
	}},
	// Nothing that is locked becomes writable, and is faulted in, where it has guards
	// and is several areas in the kernel.
	"D-lock-guards": {scope: "draw", stepwise: fillsBehindGuard},
	// Large areas without a fixed place are made smaller.
	"D-large-areas": {scope: "draw", draw: func(old bool, _ addr.Range, o op) op {
		if old && o.kind == opMap && o.length >= hugeAlign && o.flags&(MapFixed|MapFixedNoReplace) == 0 {
			o.length = o.length%hugeAlign | 1
		}
		if old && o.kind == opRemap && o.off >= hugeAlign && RemapFlags(o.flags)&RemapFixed == 0 {
			o.off = 5 * page
			if RemapFlags(o.flags)&RemapDontUnmap != 0 {
				o.length = o.off
			}
		}
		return o
	}},
	// Nothing is populated, and no heap grown, beyond all memory.
	"D-memory-cap": {scope: "draw", draw: func(_ bool, window addr.Range, o op) op { return withinMemory(window, o) }},
	// Where one side finds 2 MiB and the other does not, empty pages are there on one
	// side alone. What the kernel's hold cannot be told: only in areas that may be so.
	"D-huge-pages": {scope: "pages", page: func(d pageDifference) bool {
		if d.here {
			return d.huge && d.zero
		}
		return d.area != nil && d.area.Backing == nil && d.area.Flags&vmarea.HugePage != 0
	}},
	// Who asks for a block where there is room for one is told something else.
	"D-huge-collapse": {scope: "draw", beyond: collapsesBlock},
	// Advice to page out is noted, as that which comes next to it.
	"D-page-out": {scope: "draw", draw: func(_ bool, _ addr.Range, o op) op {
		if o.kind == opAdvise && Advice(o.data) == AdvicePageOut {
			o.data = uint64(AdviceCold)
		}
		return o
	}},
	// Who asks is told by an operation that does nothing.
	"D-merging": {scope: "draw", merged: mergedOtherwise, stepwise: steppedOtherwise, beyond: growsPastLimit},
	// Nor is a locked area left behind.
	"D-lock-count": {scope: "draw", beyond: unlocksBySource},
	// Nor is a stack moved up from the lowest addresses.
	"D-moved-stack": {scope: "draw", beyond: movesLowStack},
	// Pages of a private area of a file that changes are not pinned.
	"D-pin-copies": {scope: "draw", beyond: pinsChangingFile},
	// TestCornersAreaLimit finds out how the kernel has it.
	"D-area-limit": {scope: "limit"},
	// The kernel is asked a page lower, which is as far beyond.
	"D-fixed-top": {scope: "call", call: func(o op, c *kernelCall) {
		if o.kind == opMap && o.flags&(MapFixed|MapFixedNoReplace) != 0 && o.at > ^addr.GVA(4095) {
			c.args[1] -= page
		}
	}},
}

// collapsesBlock reports whether an operation may make a block on either side.
func collapsesBlock(o op, as *AddressSpace) (found bool) {
	if o.kind != opAdvise || Advice(o.data) != AdviceCollapse || o.length == 0 {
		return false
	}
	as.tree.Snapshot().Ascend(o.at, func(a *vmarea.Area) bool {
		found = found || hugeRange(a.Start+hugeAlign-1).End <= a.End
		return !found && a.End < o.at+addr.GVA(o.length)
	})
	return found
}

// Nothing is drawn that would have the kernel make tables for all of a large area.
func TestOracleFillsNoTables(t *testing.T) {
	window := addr.Range{Start: 0x10000, End: 1<<47 - 1<<30}
	for _, v := range []Advice{AdvicePopulateRead, AdvicePopulateWrite, AdviceGuardInstall} {
		for _, at := range []addr.GVA{0, page, window.Start, window.Start + 1<<40} {
			for _, length := range []uint64{mostPopulated, mostPopulated + page, 1 << 47, 1<<47 + 5*page, 1 << 63, window.Len(), ^uint64(0) - uint64(at), ^uint64(0), -uint64(at) &^ (page - 1)} {
				o := withinMemory(window, doAdvise(at, length, v))
				up, ok := addr.RoundUpLength(o.length)
				if end, fits := at.Add(up); ok && fits && uint64(end-at) > mostPopulated {
					t.Errorf("%v is left", o)
				}
			}
		}
	}
}

// What is passed over for the steps in which areas are taken is what they decide.
func TestOracleStepsAreNoMoreThanThat(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	at := mustMap(t, as, MapOptions{Length: 6 * page, Prot: r_, Flags: anon})
	mustMap(t, as, MapOptions{Length: 2 * page, Prot: rw, Flags: anon})
	lines := func(cuts ...int) (out []addr.Range) {
		from := 0
		for _, to := range append(cuts, 6) {
			out = append(out, addr.Range{Start: at + addr.GVA(from)*page, End: at + addr.GVA(to)*page})
			from = to
		}
		return out
	}
	write := op{kind: opProtect, at: at, length: 6 * page, prot: rw}
	aside := op{kind: opRemap, at: at, length: 6 * page, off: 6 * page, flags: MapFlags(remapKnown), to: at + 64*page}
	one := aside
	one.length, one.off = 3*page, 3*page
	for _, c := range []struct {
		name  string
		o     op
		data  int64 // pages
		lines []addr.Range
		want  bool
	}{
		{"no limit", write, 0, lines(3), false},
		{"one area", write, 4, lines(), false},
		{"the first fits", write, 5, lines(3), true},
		{"all fits", write, 8, lines(3), false},
		{"none fits", write, 4, lines(3), false},
		{"beside it", op{kind: opProtect, at: at, length: 3 * page, prot: rw}, 5, lines(3), false},
		{"of a larger one", op{kind: opProtect, at: at + page, length: 5 * page, prot: rw}, 6, lines(5), true},
		{"nothing becomes data", op{kind: opProtect, at: at, length: 6 * page, prot: rx}, 5, lines(3), false},
		{"nothing limits what is left", aside, 0, lines(3), false},
		{"what is left", aside, 5, lines(3), true},
		{"what is left, alike", aside, 5, lines(), false},
		{"what moves away", op{kind: opRemap, at: at, length: 6 * page, off: 6 * page, flags: 3}, 5, lines(3), false},
		{"another area ends there", one, 5, lines(3), true},
		{"cut elsewhere", write, 6, lines(2, 4), true},
	} {
		as.SetLimits(Limits{MaxData: c.data * int64(page)})
		if got := steppedOtherwise(c.o, as, c.lines); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// documentedExclusions returns the ids and oracle scopes of docs/differences.md.
func documentedExclusions(tb testing.TB) (scopes map[string]string, all []string) {
	b, err := os.ReadFile("../docs/differences.md")
	mustDo(tb, err)
	scopes = map[string]string{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		id := strings.Trim(strings.TrimSpace(cells[0]), "`")
		if !strings.HasPrefix(id, "D-") {
			continue
		}
		all = append(all, id)
		if scope := strings.TrimSpace(cells[len(cells)-1]); scope != "–" {
			scopes[id] = scope
		}
	}
	if len(all) < 5 {
		tb.Fatalf("docs/differences.md lists %v: the table is not where it was", all)
	}
	return scopes, all
}

// activeExclusions returns the rules that have a row.
func activeExclusions(tb testing.TB) []exclusion {
	scopes, _ := documentedExclusions(tb)
	var out []exclusion
	for _, id := range slices.Sorted(maps.Keys(scopes)) {
		if x, ok := exclusionRules[id]; ok {
			out = append(out, x)
		}
	}
	return out
}

// The document and the table agree, and ids are unique.
func TestOracleExclusionsAreDocumented(t *testing.T) {
	documented, all := documentedExclusions(t)
	used := map[string]string{}
	for id, x := range exclusionRules {
		used[id] = x.scope
	}
	if diff := cmp.Diff(documented, used); diff != "" {
		t.Errorf("docs/differences.md and the oracle's exclusions (-document +oracle):\n%s", diff)
	}
	slices.Sort(all)
	if unique := slices.Compact(slices.Clone(all)); len(unique) != len(all) {
		t.Errorf("an id is there twice: %v", all)
	}
}
