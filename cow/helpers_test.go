package cow

import (
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

const (
	firstFrame addr.PFN = 0x40
	page                = addr.PageSize
)

// host is a FrameStore over the Go heap that is as unkind as a host may be:
// what it does not back is garbage, and touching it is found out. Calls can be
// made to fail, one by one.
type host struct {
	testing.TB
	a arena.Arena

	mu       sync.Mutex
	backed   map[addr.PFN]bool
	calls    int
	fails    func(call int, populate bool, n uint64) error // nil: none
	during   func(populate bool)                           // called without mu, nil: nothing
	populate []run
	given    []run
}

func newHost(tb testing.TB, nFrames uint64) *host {
	h := &host{TB: tb, backed: make(map[addr.PFN]bool)}
	h.a = arena.New(make([]byte, nFrames*page), firstFrame)
	for i := range addr.PFN(nFrames) {
		h.spoil(firstFrame + i)
	}
	return h
}

func (h *host) spoil(f addr.PFN) {
	for i := range h.a.Bytes(f) {
		h.a.Bytes(f)[i] = 0xee
	}
}

func (h *host) call(populate bool, n uint64) error {
	if h.during != nil {
		h.during(populate)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	if h.fails == nil {
		return nil
	}
	return h.fails(h.calls, populate, n)
}

func (h *host) Populate(f addr.PFN, n uint64) error {
	if err := h.call(true, n); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.populate = append(h.populate, run{f, n})
	for i := range addr.PFN(n) {
		if h.backed[f+i] {
			h.Errorf("frame %v is populated, and was", f+i)
		}
		h.backed[f+i] = true
		h.a.Zero(f + i)
	}
	return nil
}

func (h *host) GiveBack(f addr.PFN, n uint64) error {
	if err := h.call(false, n); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.given = append(h.given, run{f, n})
	for i := range addr.PFN(n) {
		if !h.backed[f+i] {
			h.Errorf("frame %v is given back, and was not populated", f+i)
		}
		delete(h.backed, f+i)
		h.spoil(f + i)
	}
	return nil
}

func (h *host) isBacked(f addr.PFN) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.backed[f]
}

func (h *host) isZero(f addr.PFN) bool {
	for _, b := range h.a.Bytes(f) {
		if b != 0 {
			return false
		}
	}
	return true
}

// newPool returns a pool over a host, which must have every frame again when the
// test ends, or so many of them less as lost says.
func newPool(tb testing.TB, nFrames uint64, o Options) (*Pool, *host) {
	h := newHost(tb, nFrames)
	p := NewPool(h.a, h, 0, o)
	tb.Cleanup(func() { mustHaveAll(tb, p, h) })
	return p, h
}

// mustHaveAll checks that every frame is on one list, once.
func mustHaveAll(tb testing.TB, p *Pool, h *host) {
	tb.Helper()
	if tb.Failed() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := make(map[addr.PFN]int)
	for _, x := range p.free {
		seen[x.frame()]++
		if !h.isBacked(x.frame()) {
			tb.Errorf("frame %v is on the free list, and the host does not back it", x.frame())
		}
		if x.isZero() && !h.isZero(x.frame()) {
			tb.Errorf("frame %v is said to be zero, and is not", x.frame())
		}
	}
	for _, b := range p.whole {
		for i := range addr.PFN(BlockFrames) {
			seen[b+i]++
			if !h.isBacked(b + i) {
				tb.Errorf("frame %v is in a free block, and the host does not back it", b+i)
			}
		}
	}
	for i := range p.Counts.blocks.counts {
		if n := p.Counts.blocks.counts[i].Load(); n != 0 {
			tb.Errorf("block %d has %d leaves", i, n)
		}
	}
	inRuns := uint64(0)
	for _, r := range p.runs {
		inRuns += r.n
		for i := range addr.PFN(r.n) {
			seen[r.first+i]++
		}
	}
	for i := range addr.PFN(h.a.Len()) {
		f := firstFrame + i
		if seen[f] != 1 || p.Of(f) != 0 {
			tb.Errorf("frame %v is on %d lists with count %d", f, seen[f], p.Of(f))
		}
	}
	if inRuns != p.inRuns || p.away != 0 || p.trimming {
		tb.Errorf("%d frames in runs, %d counted; away %d, trimming %v", inRuns, p.inRuns, p.away, p.trimming)
	}
}

func mustAlloc(tb testing.TB, p *Pool, n int) []addr.PFN {
	tb.Helper()
	out := make([]addr.PFN, n)
	if err := p.Alloc(out); err != nil {
		tb.Fatal(err)
	}
	return out
}
