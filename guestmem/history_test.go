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
	historyBase    addr.GVA = 0x40000000 - page // a page before the border of two leaf tables
	historyClients          = 4
	historyLength           = 7 // operations of each client
	// historyDecidedIn is how long the search for an explanation may take. It
	// takes a millisecond or so; that a search was given up is no failure.
	historyDecidedIn = 5 * time.Second
)

// history is one round: clients that do things to a family of spaces.
type history struct {
	clock  atomic.Int64
	words  atomic.Uint64
	change atomic.Int64
	mu     sync.Mutex
	spaces []*AddressSpace // mu
	ops    []porcupine.Operation
}

func (h *history) space(rng *rand.Rand) (int, *AddressSpace) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := rng.IntN(len(h.spaces))
	return i, h.spaces[i]
}

// forked gives the child of a fork its number.
func (h *history) forked(child *AddressSpace) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spaces = append(h.spaces, child)
	return len(h.spaces) - 1
}

func (h *history) isFull() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.spaces) > historySpaces-historyClients // each may be forking
}

// draw chooses what a client does next. last is what it loaded last.
func (h *history) draw(rng *rand.Rand, last uint64) (historyIn, *AddressSpace) {
	weights := [nHist]int{histLoad: 28, histStore: 24, histSwap: 6, histFault: 6, histMap: 7, histUnmap: 5, histProtect: 9, histDiscard: 5, histFork: 10}
	i, as := h.space(rng)
	in := historyIn{space: i, page: rng.IntN(historyPages)}
	d := rng.IntN(100)
	for d >= weights[in.op] {
		d -= weights[in.op]
		in.op++
	}
	if in.op == histFork && h.isFull() {
		in.op = histLoad
	}
	switch in.op {
	case histStore:
		in.word = h.words.Add(1)
	case histSwap:
		in.old, in.word = last, h.words.Add(1)
	case histFault:
		in.access = []Access{Read, Write}[rng.IntN(2)]
	case histMap, histProtect:
		in.prot = []Prot{rw, rw, r_, ProtNone}[rng.IntN(4)]
		in.n = 1 + rng.IntN(historyPages-in.page)
	case histUnmap, histDiscard:
		in.n = 1 + rng.IntN(historyPages-in.page)
	}
	if in.op == histMap || in.op == histUnmap {
		in.change = int(h.change.Add(1))
	}
	return in, as
}

// perform does it.
func (h *history) perform(as *AddressSpace, in historyIn) (out historyOut) {
	gva, length := historyBase+addr.GVA(in.page)*page, uint64(in.n)*page
	switch in.op {
	case histLoad:
		out.word, out.err = as.Load64(ctx, gva+8)
	case histStore:
		out.err = as.Store64(ctx, gva+8, in.word)
	case histSwap:
		out.swapped, out.err = as.CompareAndSwap64(ctx, gva+8, in.old, in.word)
	case histFault:
		out.err = as.Fault(ctx, gva, in.access)
	case histMap:
		_, out.err = as.Map(ctx, MapOptions{Addr: gva, Length: length, Prot: in.prot, Flags: anon | MapFixed})
	case histUnmap:
		out.err = as.Unmap(gva, length)
	case histProtect:
		out.err = as.Protect(gva, length, in.prot)
	case histDiscard:
		out.err = as.Discard(gva, length)
	case histFork:
		var child *AddressSpace
		if child, out.err = as.Fork(); out.err == nil {
			out.child = h.forked(child)
		}
	}
	out.err = named(out.err)
	return out
}

// run lets the clients go and gathers what they have seen.
func (h *history) run(first *AddressSpace) {
	h.spaces = []*AddressSpace{first}
	var wg sync.WaitGroup
	per := make([][]porcupine.Operation, historyClients)
	for client := range historyClients {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 3))
		wg.Go(func() {
			last := uint64(0)
			for range historyLength {
				in, as := h.draw(rng, last)
				// The clock is what orders operations: one that returned
				// before another was called has the lower times.
				call := h.clock.Add(1)
				out := h.perform(as, in)
				done := h.clock.Add(1)
				if in.op == histLoad && out.err == nil {
					last = out.word
				}
				per[client] = append(per[client], porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: done})
				if rng.IntN(4) == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	h.ops = withEmptied(slices.Concat(per...))
}

// String lists the history in the order of the calls.
func (h *history) String() string {
	return listHistory(h.ops)
}

func listHistory(ops []porcupine.Operation) string {
	ops = slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var b strings.Builder
	for _, o := range ops {
		if o.Input.(historyIn).op == histEmpty {
			continue
		}
		fmt.Fprintf(&b, "  [%3d, %3d] client %d: %s\n", o.Call, o.Return, o.ClientId, describeOp(o.Input.(historyIn), o.Output.(historyOut)))
	}
	return b.String()
}

// mustExplain fails the test if the history has no explanation, and says where it
// is drawn.
func (h *history) mustExplain(t *testing.T) (decided bool) {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(historyModel, h.ops, historyDecidedIn)
	if result == porcupine.Illegal {
		path := filepath.Join(t.ArtifactDir(), "history.html")
		if err := porcupine.VisualizePath(historyModel, info, path); err != nil {
			t.Log(err)
		}
		t.Errorf("no order explains this history, drawn in %s:\n%s", path, h)
	}
	return result != porcupine.Unknown
}

// Concurrent histories of map, unmap, protect, discard, loads, stores, faults and
// fork are linearizable, ranges and forks at one instant for all their pages.
func TestR1HistoriesHaveAnExplanation(t *testing.T) {
	for _, yield := range []uint32{0, 2, 8} {
		t.Run(fmt.Sprintf("yield=%d", yield), func(t *testing.T) { explainHistories(t, yield) })
	}
}

func explainHistories(t *testing.T, yield uint32) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	defer invariants.YieldOneIn(invariants.YieldOneIn(yield))
	m := newMemory(t, 16<<20)
	deadline := time.Now().Add(soakFor() / 2)
	rounds, undecided, beside := 0, 0, 0
	for ; time.Now().Before(deadline) || rounds < 20 || !wasChecked(rounds, undecided, beside) && time.Now().Before(deadline.Add(time.Minute)); rounds++ {
		h := new(history)
		as := newSpace(t, m)
		mapAt(t, as, historyBase, historyPages*page, rw)
		var relative *AddressSpace
		switch rounds % 3 {
		case 1: // tables of its own, that somebody else has too
			mustWrite(t, as, historyBase, make([]byte, historyPages*page))
			relative = mustFork(t, as)
		case 2: // tables that nobody else has any more, behind a read-only root
			mustWrite(t, as, historyBase, make([]byte, historyPages*page))
			mustDo(t, mustFork(t, as).Close())
		}
		h.run(as)
		if !h.mustExplain(t) {
			undecided++
		}
		beside += overlaps(h.ops)
		for _, s := range h.spaces {
			mustDo(t, s.Close())
		}
		if relative != nil {
			mustDo(t, relative.Close())
		}
		if rounds%50 == 0 {
			mustCheck(t, m)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d histories, %d given up, %d pairs of operations beside each other", rounds, undecided, beside)
	if !wasChecked(rounds, undecided, beside) {
		t.Error("nothing was checked")
	}
}

// wasChecked reports whether the histories so far say anything. Where others need the
// processors too, a few may have had each operation by itself.
func wasChecked(rounds, undecided, beside int) bool { return undecided < rounds && beside > 0 }

// overlaps counts the pairs of operations of which neither returned before the
// other was called.
func overlaps(ops []porcupine.Operation) (n int) {
	for i, a := range ops {
		for _, b := range ops[:i] {
			if a.Call < b.Return && b.Call < a.Return {
				n++
			}
		}
	}
	return n
}

// The model refuses what must not happen, so that its silence says something.
func TestHistoriesWithoutAnExplanation(t *testing.T) {
	type op struct {
		call, done int64
		in         historyIn
		out        historyOut
	}
	store := func(space, page int, w uint64) historyIn {
		return historyIn{op: histStore, space: space, page: page, word: w}
	}
	load := func(space, page int) historyIn { return historyIn{op: histLoad, space: space, page: page} }
	fork := historyIn{op: histFork}
	for name, ops := range map[string][]op{
		"a lost store": {
			{1, 2, store(0, 0, 7), historyOut{}},
			{3, 4, load(0, 0), historyOut{word: 0}},
		},
		"a store after the page became read-only": {
			{1, 2, historyIn{op: histProtect, n: 1, prot: r_}, historyOut{}},
			{3, 4, store(0, 0, 7), historyOut{}},
		},
		"a page that outlives its unmap": {
			{1, 2, historyIn{op: histUnmap, n: 2}, historyOut{}},
			{3, 4, load(0, 1), historyOut{}},
		},
		"an unmap at two instants": {
			{1, 8, historyIn{op: histUnmap, n: 2}, historyOut{}},
			{2, 3, load(0, 0), historyOut{err: ErrNotMapped}},
			{4, 5, load(0, 1), historyOut{}},
		},
		"a fork at two instants": {
			{1, 10, fork, historyOut{child: 1}},
			{2, 3, store(0, 0, 1), historyOut{}},
			{4, 5, store(0, 1, 2), historyOut{}},
			{11, 12, load(1, 0), historyOut{word: 0}},
			{13, 14, load(1, 1), historyOut{word: 2}},
		},
		"a child that sees its parent": {
			{1, 2, fork, historyOut{child: 1}},
			{3, 4, store(0, 0, 1), historyOut{}},
			{5, 6, load(1, 0), historyOut{word: 1}},
		},
		"a store that only the child has": {
			{1, 6, fork, historyOut{child: 1}},
			{2, 3, store(0, 0, 1), historyOut{}},
			{7, 8, load(1, 0), historyOut{word: 1}},
			{9, 10, load(0, 0), historyOut{word: 0}},
		},
	} {
		var h []porcupine.Operation
		for i, o := range ops {
			h = append(h, porcupine.Operation{ClientId: i, Input: o.in, Call: o.call, Output: o.out, Return: o.done})
		}
		if porcupine.CheckOperations(historyModel, withEmptied(h)) {
			t.Errorf("%s has an explanation:\n%s", name, listHistory(h))
		}
	}
}
