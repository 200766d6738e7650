//go:build amd64

package guestmem

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

var (
	oracleOps  = flag.Int("oracle.ops", 0, "how many operations TestOracle compares with the kernel; 0: what suits a run of all tests")
	oracleSeed = flag.Uint64("oracle.seed", 0, "the seed of TestOracle; 0: a fresh one")
)

// opsInPlainTests is how many operations are compared without -oracle.ops.
const opsInPlainTests = 20_000

// sequenceOps is the length of a sequence: then both sides begin afresh.
const sequenceOps = 500

// TestOracle runs random operations on address spaces and on the kernel, and
// compares answers, areas, residency and contents, in every member of a family.
// A sequence that differs is shortened and printed as a test.
func TestOracle(t *testing.T) {
	seed, n := *oracleSeed, *oracleOps
	if seed == 0 {
		seed = rand.Uint64()
	}
	if n == 0 {
		if n = opsInPlainTests; invariants.Enabled {
			n /= 4
		}
	}
	t.Logf("go test ./guestmem -run '^TestOracle$' -oracle.seed=%d -oracle.ops=%d", seed, n)
	path := helperFile(t, helperBytes(t))
	hosts := make([]*kernelHost, len(hostWindows))
	for i, win := range hostWindows {
		hosts[i] = newConfiguredHost(t, path, win)
		if hosts[i].unfit != "" {
			t.Logf("without the window %q: %s", win.name, hosts[i].unfit)
		}
	}
	done, start, exclusions := 0, time.Now(), activeExclusions(t)
	for i := 0; done < n; i++ {
		which := i % len(hosts)
		if hosts[which].unfit != "" {
			continue
		}
		s := sequence{seed: seed + uint64(i)*0x9e3779b97f4a7c15, window: hostWindows[which], exclusions: exclusions}
		reclaimed := reclaimedPages(t)
		ops, diff := s.generate(hosts[which], min(sequenceOps, n-done))
		for range mostReclaims {
			now := reclaimedPages(t)
			if diff == "" || now == reclaimed {
				break
			}
			t.Logf("again, the kernel was short of memory (%d pages): %s", now-reclaimed, diff)
			if hosts[which].err != nil {
				hosts[which] = newConfiguredHost(t, path, hostWindows[which])
			}
			reclaimed = now
			ops, diff = s.generate(hosts[which], min(sequenceOps, n-done))
		}
		if diff != "" {
			report(t, path, s, ops, diff)
			return
		}
		done += len(ops)
	}
	took := time.Since(start)
	t.Logf("%d operations in %v, %.0f a second", done, took.Round(time.Millisecond), float64(done)/took.Seconds())
}

// newConfiguredHost starts a zygote whose heap begins where a world's does.
func newConfiguredHost(tb testing.TB, path string, win hostWindow) *kernelHost {
	tb.Helper()
	k := newKernelHost(tb, path, win)
	if k.unfit == "" {
		mustDo(tb, k.configure(heapStart(k.view.window)))
		mustDo(tb, k.probe())
	}
	return k
}

// sequence says how both sides begin.
type sequence struct {
	seed       uint64
	window     hostWindow
	exclusions []exclusion
}

// oracleRun is a sequence under way.
type oracleRun struct {
	sequence
	w        *opWorld
	k        *kernelHost
	hereOnly [maxFamily]map[addr.GVA]bool // pages that were here only when the space was forked
	buf      [16 * page]byte
	ops      []op
	last     result // of the last operation
	held     *op    // drawn, and to be run at the start of a segment
	broken   bool   // this side has panicked
}

// start begins on both sides.
func (s sequence) start(k *kernelHost) (*oracleRun, error) {
	around := 1
	if s.seed%4 == 3 {
		around = 16
	}
	w, err := newOpWorld(worldOptions{maxLocked: helperMaxLocked(),
		window: k.view.window, placement: s.window.placement,
		memory: MemoryOptions{FaultAround: around, Grow: 256 << 10, KeepFree: 1 << 20},
	})
	if err != nil {
		return nil, err
	}
	return &oracleRun{sequence: s, w: w, k: k}, k.newFamily()
}

// generate draws and runs n operations. It returns what was run, and what
// differs, "" for nothing.
func (s sequence) generate(k *kernelHost, n int) ([]op, string) {
	o, err := s.start(k)
	if err != nil {
		return nil, err.Error()
	}
	rng := rand.New(rand.NewPCG(s.seed, 0))
	g := newGenerator(randomSource{rng}, k.view.window)
	g.top, g.below = taskSize, k.view.window.Start == k.lowest
	for len(o.ops) < n {
		o.inform(g, rng)
		if diff := o.segment(func() op { return o.drawn(g.next()) }, min(1+rng.IntN(maxCalls), n-len(o.ops)), rng.IntN(3) == 0); diff != "" {
			return o.ops, o.abandon(diff)
		}
	}
	diff := o.end()
	return o.ops, diff
}

// replay runs given operations.
func (s sequence) replay(k *kernelHost, ops []op) string {
	o, err := s.start(k)
	if err != nil {
		return err.Error()
	}
	for i := range ops {
		if diff := o.segment(func() op { return ops[i] }, 1, true); diff != "" {
			return o.abandon(diff)
		}
	}
	return o.end()
}

// drawn changes an operation that was drawn to one that can be compared.
func (o *oracleRun) drawn(p op) op {
	if v := Advice(p.data); o.k.noGuards && p.kind == opAdvise && (v == AdviceGuardInstall || v == AdviceGuardRemove) {
		p.data = uint64(AdviceDontNeed)
	}
	for _, x := range o.exclusions {
		if x.draw != nil {
			p = x.draw(!o.k.alignsHuge, o.w.window, p)
		}
	}
	return p
}

// inform tells the generator what there is.
func (o *oracleRun) inform(g *generator, rng *rand.Rand) {
	g.slots, g.areas, g.pins = g.slots[:0], g.areas[:0], o.w.pinnedPages()
	for slot, as := range o.w.spaces {
		if as != nil {
			g.slots = append(g.slots, slot)
		}
	}
	as := o.w.spaces[g.slots[rng.IntN(len(g.slots))]]
	for a := range as.Areas() {
		if g.areas = append(g.areas, a.Range); len(g.areas) == 100 {
			break
		}
	}
}

// segment runs up to n operations on both sides, and compares the answers, and
// all else if look. It ends after a fork, to see the child as it was born.
func (o *oracleRun) segment(next func() op, n int, look bool) string {
	first := len(o.ops)
	var here []result
	born := -1
	for len(here) < n && born < 0 {
		p := o.nextOf(next)
		if asksForMerging(p, o.w.spaces[uint(p.space)%maxFamily]) {
			if len(here) > 0 { // what the kernel has must be known
				o.held = &p
				break
			}
			p = o.asMerged(p)
		}
		o.ops = append(o.ops, p)
		r, panicked := o.applyHere(p)
		if panicked != "" {
			return fmt.Sprintf("%v\n\t%s", p, panicked)
		}
		here = append(here, r)
		if p.kind == opFork && !r.skipped && r.errno == 0 {
			born = int(p.data % maxFamily)
		}
		if p.kind == opClose && !r.skipped {
			o.hereOnly[p.space] = nil
		}
		if p.kind == opRemap && !r.skipped {
			to := addr.GVA(r.value)
			if r.errno != 0 {
				to = p.to // some of it may have moved
			}
			o.hereOnly[p.space] = carried(o.hereOnly[p.space], p, to, o.w.spaces[p.space])
		}
	}
	there, err := o.k.apply(o.ops[first:], here, o.exclusions)
	if err != nil {
		return err.Error()
	}
	for i, r := range here {
		if !r.equal(there[i]) {
			p := o.ops[first+i]
			o.ops = o.ops[:first+i+1]
			return fmt.Sprintf("%v\n\tkernel %v\n\there   %v", p, there[i], r)
		}
	}
	o.last = here[len(here)-1]
	if !look && born < 0 {
		return ""
	}
	for slot, as := range o.w.spaces {
		if as == nil {
			continue
		}
		m := someTime
		if slot == born {
			m = atFork
		}
		if diff := o.look(slot, m); diff != "" {
			return fmt.Sprintf("after %v: %s", o.ops[len(o.ops)-1], diff)
		}
	}
	return ""
}

// carried is a set of pages of as after a remap that has moved them, or those of them
// that it had come to when it was refused.
func carried(pages map[addr.GVA]bool, p op, to addr.GVA, as *AddressSpace) map[addr.GVA]bool {
	if to == p.at {
		return pages
	}
	out := map[addr.GVA]bool{}
	length, _ := addr.RoundUpLength(p.length)
	for at := range pages {
		if uint64(at-p.at) < length && !as.pt.Find(at).Entry.Has(pagetable.Present) {
			at += to - p.at
		}
		out[at] = true
	}
	return out
}

// nextOf is the operation that was held back, or the next one.
func (o *oracleRun) nextOf(next func() op) op {
	if o.held == nil {
		return next()
	}
	p := *o.held
	o.held = nil
	return p
}

// asMerged changes an operation whose answer would tell which neighbours the
// kernel has merged, or that cannot be compared for another reason that is known
// only now.
func (o *oracleRun) asMerged(p op) op {
	if p.space < 0 || p.space >= maxFamily || o.w.spaces[p.space] == nil {
		return p
	}
	for _, x := range o.exclusions {
		if x.beyond != nil && x.beyond(p, o.w.spaces[p.space]) {
			return withoutMerging(p)
		}
		if x.merged == nil && x.stepwise == nil {
			continue
		}
		raw, err := o.k.kernelLines(p.space)
		if err != nil {
			continue // who looks next will say so
		}
		var here addr.Range // the first that ends above
		o.w.spaces[p.space].tree.Snapshot().Ascend(p.at, func(a *vmarea.Area) bool { here = a.Range; return false })
		i := slices.IndexFunc(raw, func(a shownArea) bool { return a.End > p.at })
		if x.merged != nil && i >= 0 && !here.IsEmpty() && x.merged(p, raw[i].Range, here) {
			if p = withoutMerging(p); p.kind != opProtect {
				return p
			}
		}
		lines := make([]addr.Range, len(raw))
		for i, a := range raw {
			lines[i] = a.Range
		}
		if x.stepwise != nil && x.stepwise(p, o.w.spaces[p.space], lines) {
			p = withoutMerging(p)
			if p.kind == opProtect {
				p.length = 0 // of nothing
			}
			return p
		}
	}
	return p
}

// applyHere runs an operation on this side. A panic is one more thing that the
// kernel does not do, and is to be shortened as any other.
func (o *oracleRun) applyHere(p op) (r result, panicked string) {
	defer func() {
		if v := recover(); v != nil {
			o.broken = true
			panicked = fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return applySoftware(o.w, p), ""
}

// closeHere ends this side.
func (o *oracleRun) closeHere() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return o.w.close()
}

// mostRead is how many pages of an area are read when a sequence ends.
const mostRead = 64

// end reads everything byte by byte, and ends both sides.
func (o *oracleRun) end() string {
	n := len(o.ops)
	o.held = nil
	for slot, as := range o.w.spaces {
		if as == nil {
			continue
		}
		var reads []op
		for a := range as.Areas() {
			for at := a.Start; at < a.End && at < a.Start+mostRead*page; at += page {
				reads = append(reads, op{kind: opLoad, space: slot, at: at, length: page})
			}
		}
		i := -1
		for i+1 < len(reads) {
			diff := o.segment(func() op { i++; return reads[i] }, min(maxCalls, len(reads)-1-i), false)
			if diff != "" {
				return o.abandon(diff)
			}
		}
		if diff := o.look(slot, someTime); diff != "" {
			return o.abandon("at the end: " + diff)
		}
	}
	o.ops = o.ops[:n]
	if err := o.closeHere(); err != nil {
		return "at the end: " + err.Error()
	}
	return ""
}

// abandon ends this side without asking anything of it.
func (o *oracleRun) abandon(diff string) string {
	if o.broken {
		return diff // it may hold any lock
	}
	if err := o.closeHere(); err != nil {
		diff += "\n" + err.Error()
	}
	return diff
}

// report shortens a sequence that differs and prints it.
func report(t *testing.T, path string, s sequence, ops []op, diff string) {
	t.Helper()
	t.Errorf("seed %d, window %s, operation %d of its sequence: %s", s.seed, s.window.name, len(ops)-1, diff)
	k := newConfiguredHost(t, path, s.window)
	short, shortDiff := shrink(t, path, k, s, ops)
	if shortDiff == "" {
		t.Logf("run one by one, the same operations agree; the sequence was:\n%s", printed(s, k, ops))
		return
	}
	t.Errorf("shortened to %d operations: %s\n\n%s", len(short), shortDiff, printed(s, k, short))
}

// printed is a sequence as a test.
func printed(s sequence, k *kernelHost, ops []op) string {
	var b strings.Builder
	fmt.Fprintf(&b, "func TestOracleFound%d(t *testing.T) {\n\trunCorner(t, corner{window: %q, around: %v, steps: func(p func(int) addr.GVA) []step {\n\t\treturn []step{\n",
		s.seed%10000, s.window.name, s.seed%4 == 3)
	for _, o := range ops {
		fmt.Fprintf(&b, "\t\t\t{op: op%s},\n", o.source(k.view.window))
	}
	b.WriteString("\t\t}\n\t}})\n}\n")
	return b.String()
}
