package guestmem

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

const (
	pinHistoryBase addr.GVA = 0x40000000 // aligned to 2 MiB, for those rounds that have huge leaves
	pinHistoryAway addr.GVA = 0x50000000
)

// historyPin is a pin, and what keeps its device and its release apart.
type historyPin struct {
	mu     sync.Mutex
	pin    *Pin // nil once it was released; mu
	access Access
}

// pinHistory is one round: clients that do things to one space.
type pinHistory struct {
	m  *Memory
	as *AddressSpace

	clock, words atomic.Int64

	mu        sync.Mutex
	reserved  [nPinHistory]int // of what there may be so many of; mu
	pins      []*historyPin    // mu
	snapshots []*SpaceSnapshot // mu
	children  []*AddressSpace  // mu
	ops       []porcupine.Operation
}

var pinHistoryWeights = [nPinHistory]int{pinLoad: 16, pinStore: 16, pinSwap: 4, pinTake: 8, pinRelease: 3, pinDeviceLoad: 8, pinDeviceStore: 8,
	pinSnapshot: 5, pinRollback: 8, pinFork: 4, pinDiscard: 3, pinMoveOut: 3, pinMoveIn: 4, pinProtect: 4, pinChildLoad: 6, pinChildStore: 3, pinDiff: 3}

// reserve takes one of the most that there may be.
func (h *pinHistory) reserve(op pinHistoryOp, most int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reserved[op] == most {
		return false
	}
	h.reserved[op]++
	return true
}

// add appends what an operation has made, and returns its number.
func add[T any](h *pinHistory, list *[]T, v T) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	*list = append(*list, v)
	return len(*list) - 1
}

// drawOne draws one of them; false if there is none.
func drawOne[T any](h *pinHistory, rng *rand.Rand, list *[]T) (v T, i int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(*list) == 0 {
		return v, 0, false
	}
	i = rng.IntN(len(*list))
	return (*list)[i], i, true
}

// draw chooses what a client does next.
func (h *pinHistory) draw(rng *rand.Rand, last uint64) pinHistoryIn {
	sum := 0
	for _, w := range pinHistoryWeights {
		sum += w
	}
	in := pinHistoryIn{page: rng.IntN(pinHistoryPages)}
	for d := rng.IntN(sum); d >= pinHistoryWeights[in.op]; in.op++ {
		d -= pinHistoryWeights[in.op]
	}
	switch in.op {
	case pinStore, pinDeviceStore, pinChildStore:
		in.word = uint64(h.words.Add(1))
	case pinSwap:
		in.old, in.word = last, uint64(h.words.Add(1))
	case pinTake:
		in.access = [...]Access{Read, Write}[rng.IntN(2)]
	case pinProtect:
		in.prot = [...]Prot{rw, r_}[rng.IntN(2)]
	}
	return in
}

// perform does it, and reports false if there is nothing to do it to.
func (h *pinHistory) perform(rng *rand.Rand, in *pinHistoryIn) (out pinHistoryOut, called int64, ok bool) {
	at := pinHistoryBase + addr.GVA(in.page)*page
	switch in.op {
	case pinRelease, pinDeviceLoad, pinDeviceStore:
		return h.useDevice(rng, in)
	case pinTake:
		if !h.reserve(in.op, pinHistoryPins) {
			return out, 0, false
		}
	case pinSnapshot, pinFork:
		if !h.reserve(in.op, pinHistoryCopies) {
			return out, 0, false
		}
	}
	called = h.clock.Add(1)
	switch in.op {
	case pinLoad:
		out.word, out.err = h.as.Load64(ctx, at)
	case pinStore:
		out.err = h.as.Store64(ctx, at, in.word)
	case pinSwap:
		out.swapped, out.err = h.as.CompareAndSwap64(ctx, at, in.old, in.word)
	case pinTake:
		var p *Pin
		if p, out.err = h.as.Pin(ctx, addr.Range{Start: at, End: at + page}, in.access); out.err == nil {
			out.number = add(h, &h.pins, &historyPin{pin: p, access: in.access})
		}
	case pinSnapshot:
		var s *SpaceSnapshot
		if s, out.err = h.as.Snapshot(); out.err == nil {
			out.number = add(h, &h.snapshots, s)
		}
	case pinFork:
		var c *AddressSpace
		if c, out.err = h.as.Fork(); out.err == nil {
			out.number = add(h, &h.children, c)
		}
	case pinRollback, pinDiff:
		var s *SpaceSnapshot
		if s, in.number, ok = drawOne(h, rng, &h.snapshots); !ok {
			return out, 0, false
		}
		if in.op == pinRollback {
			out.err = h.as.Rollback(ctx, s)
			break
		}
		for _, err := range Diff(h.as, s, [...]DiffMode{ByFrame, ByContent}[rng.IntN(2)]) {
			out.err = err
		}
	case pinDiscard:
		out.err = h.as.Discard(at, page)
	case pinMoveOut, pinMoveIn:
		to := pinHistoryAway + addr.GVA(in.page)*page
		if in.op == pinMoveIn {
			at, to = to, at
		}
		_, out.err = h.as.Remap(ctx, RemapOptions{Addr: at, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: to})
	case pinProtect:
		out.err = h.as.Protect(at, page, in.prot)
	case pinChildLoad, pinChildStore:
		var c *AddressSpace
		if c, in.number, ok = drawOne(h, rng, &h.children); !ok {
			return out, 0, false
		}
		if in.op == pinChildLoad {
			out.word, out.err = c.Load64(ctx, at)
		} else {
			out.err = c.Store64(ctx, at, in.word)
		}
	}
	out.err = named(out.err)
	return out, called, true
}

// useDevice does what a device does with a pin that it holds.
func (h *pinHistory) useDevice(rng *rand.Rand, in *pinHistoryIn) (out pinHistoryOut, called int64, ok bool) {
	p, i, ok := drawOne(h, rng, &h.pins)
	if !ok {
		return out, 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pin == nil || in.op == pinDeviceStore && p.access != Write {
		return out, 0, false
	}
	in.number, called = i, h.clock.Add(1)
	gpa := p.pin.Frames()[0].GPA()
	switch in.op {
	case pinRelease:
		out.err, p.pin = p.pin.Release(), nil
	case pinDeviceLoad:
		out.word, out.err = h.m.Load64(gpa)
	case pinDeviceStore:
		out.err = h.m.Store64(gpa, in.word)
	}
	return out, called, true
}

// run lets the clients go and gathers what they have seen.
func (h *pinHistory) run(seed uint64) {
	var wg sync.WaitGroup
	per := make([][]porcupine.Operation, historyClients)
	for client := range historyClients {
		rng := rand.New(rand.NewPCG(seed, uint64(client)))
		wg.Go(func() {
			last := uint64(0)
			for range historyLength + 2 {
				in := h.draw(rng, last)
				out, called, ok := h.perform(rng, &in)
				if !ok {
					continue
				}
				done := h.clock.Add(1)
				if in.op == pinLoad && out.err == nil {
					last = out.word
				}
				per[client] = append(per[client], porcupine.Operation{ClientId: client, Input: in, Call: called, Output: out, Return: done})
				if rng.IntN(4) == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	h.ops = slices.Concat(per...)
}

// close ends everything, in no particular order.
func (h *pinHistory) close(t *testing.T) {
	t.Helper()
	ends := []func() error{h.as.Close}
	for _, p := range h.pins {
		if p.pin != nil {
			ends = append(ends, p.pin.Release)
		}
	}
	for _, s := range h.snapshots {
		ends = append(ends, s.Close)
	}
	for _, c := range h.children {
		ends = append(ends, c.Close)
	}
	rand.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
	for _, end := range ends {
		mustDo(t, end())
	}
}

// mustExplain fails the test if the history has no explanation.
func (h *pinHistory) mustExplain(t *testing.T) (decided bool) {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(pinHistoryModel, h.ops, historyDecidedIn)
	if result == porcupine.Illegal {
		path := filepath.Join(t.ArtifactDir(), "history.html")
		if err := porcupine.VisualizePath(pinHistoryModel, info, path); err != nil {
			t.Log(err)
		}
		t.Errorf("no order explains this history, drawn in %s:\n%s", path, listPinHistory(h.ops))
	}
	return result != porcupine.Unknown
}

func listPinHistory(ops []porcupine.Operation) string {
	ops = slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintf(&b, "  [%3d, %3d] client %d: %s\n", o.Call, o.Return, o.ClientId, pinHistoryModel.DescribeOperation(o.Input, o.Output))
	}
	return b.String()
}

// Concurrent histories of pins, of a device that stores through them, and of rollbacks,
// snapshots, forks, moves and discards beside both, are linearizable: nobody misses a
// store, and nobody sees one that is not his to see. Every count is right after each.
func TestR7HistoriesHaveAnExplanation(t *testing.T) {
	for _, yield := range []uint32{0, 2, 8} {
		t.Run(fmt.Sprintf("yield=%d", yield), func(t *testing.T) { explainPinHistories(t, yield, HugeLeavesNever) })
		t.Run(fmt.Sprintf("yield=%d/huge", yield), func(t *testing.T) { explainPinHistories(t, yield, HugeLeavesAlways) })
	}
}

func explainPinHistories(t *testing.T, yield uint32, policy HugeLeafPolicy) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	defer invariants.YieldOneIn(invariants.YieldOneIn(yield))
	m := newMemory(t, 64<<20)
	deadline := time.Now().Add(soakFor() / 4)
	rounds, undecided, beside := 0, 0, 0
	for ; (time.Now().Before(deadline) || rounds < 20 || !wasChecked(rounds, undecided, beside) && time.Now().Before(deadline.Add(time.Minute))) && !t.Failed(); rounds++ {
		as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: policy})
		mustDo(t, err)
		mapAt(t, as, pinHistoryBase, hugeAlign, rw)
		h := &pinHistory{m: m, as: as}
		h.run(rand.Uint64())
		if !h.mustExplain(t) {
			undecided++
		}
		beside += overlaps(h.ops)
		mustCheck(t, m)
		h.close(t)
		mustCheck(t, m)
		if s := m.Stats(); s.FramesInUse != 0 {
			t.Errorf("%d frames are left in use", s.FramesInUse)
		}
	}
	t.Logf("%d histories, %d given up, %d pairs of operations beside each other", rounds, undecided, beside)
	if !t.Failed() && !wasChecked(rounds, undecided, beside) {
		t.Error("nothing was checked")
	}
}

// The model refuses what must not happen.
func TestPinHistoriesWithoutAnExplanation(t *testing.T) {
	type op struct {
		in  pinHistoryIn
		out pinHistoryOut
	}
	store := func(w uint64) op { return op{pinHistoryIn{op: pinStore, word: w}, pinHistoryOut{}} }
	load := func(w uint64) op { return op{pinHistoryIn{op: pinLoad}, pinHistoryOut{word: w}} }
	device := func(w uint64) op { return op{pinHistoryIn{op: pinDeviceStore, word: w}, pinHistoryOut{}} }
	pin, freeze, back := op{in: pinHistoryIn{op: pinTake, access: Write}}, op{in: pinHistoryIn{op: pinSnapshot}}, op{in: pinHistoryIn{op: pinRollback}}
	for name, ops := range map[string][]op{
		"a device's store that the guest misses":    {pin, device(7), load(0)},
		"a rollback that a device's store outlives": {freeze, pin, device(7), back, load(7)},
		"a device's store after a rollback":         {freeze, pin, back, device(7), load(7)},
		"a rollback that keeps a store":             {freeze, store(7), back, load(7)},
		"a pin that was moved and lost its page":    {pin, {in: pinHistoryIn{op: pinMoveOut}}, device(7), {in: pinHistoryIn{op: pinMoveIn}}, load(0)},
		"a child that sees a device's store":        {pin, {in: pinHistoryIn{op: pinFork}}, device(7), {pinHistoryIn{op: pinChildLoad}, pinHistoryOut{word: 7}}},
		"a pin for reading that is denied":          {{in: pinHistoryIn{op: pinProtect, prot: r_}}, {pinHistoryIn{op: pinTake, access: Read}, pinHistoryOut{err: ErrAccess}}},
	} {
		var h []porcupine.Operation
		for i, o := range ops {
			h = append(h, porcupine.Operation{Input: o.in, Call: int64(2 * i), Output: o.out, Return: int64(2*i + 1)})
		}
		if porcupine.CheckOperations(pinHistoryModel, h) {
			t.Errorf("%s has an explanation:\n%s", name, listPinHistory(h))
		}
	}
}
