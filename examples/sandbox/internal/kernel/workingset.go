//go:build linux && amd64

package kernel

import (
	"cmp"
	"slices"
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Runs from one checkpoint touch much the same pages. A fault of ring 3 costs an
// exit, 40 to 100 µs on a nested host, and the same page from here 1 to 3, most of
// it the copy: so the pages that runs have faulted on are brought in before the next
// run, and where the program maps memory as it goes, when it has mapped it. It is
// no more than a head start: a page more or less there, and what is in it is the
// same.

// maxWorkingSet bounds the pages that are remembered: 64 MiB.
const maxWorkingSet = 16 << 10

// workingSet is the pages of the checkpoint's address space that runs faulted on.
type workingSet struct {
	mu     sync.Mutex
	access map[addr.GVA]guestmem.Access // mu
	sorted []workingPage                // of access; nil if it has changed; mu
}

type workingPage struct {
	at     addr.GVA
	access guestmem.Access
}

// add notes a fault. A page that was written once is written again.
func (w *workingSet) add(at addr.GVA, access guestmem.Access) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at = at.RoundDown()
	had, known := w.access[at]
	if known && (had == access || had == guestmem.Write) || len(w.access) >= maxWorkingSet {
		return
	}
	if w.access == nil {
		w.access = make(map[addr.GVA]guestmem.Access)
	}
	w.access[at] = access
	w.sorted = nil
}

// in returns the pages in [start, end), in order.
func (w *workingSet) in(start, end addr.GVA) []workingPage {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sorted == nil {
		for at, access := range w.access {
			w.sorted = append(w.sorted, workingPage{at, access})
		}
		slices.SortFunc(w.sorted, func(a, b workingPage) int { return cmp.Compare(a.at, b.at) })
	}
	find := func(at addr.GVA) int {
		i, _ := slices.BinarySearchFunc(w.sorted, at, func(p workingPage, at addr.GVA) int { return cmp.Compare(p.at, at) })
		return i
	}
	return w.sorted[find(start):find(end)]
}

// bring faults in the pages of the working set in [start, end) that are mapped. It
// does not let stacks grow, which would show.
func (w *workingSet) bring(k *Kernel, as *guestmem.AddressSpace, start, end addr.GVA) {
	var area guestmem.AreaInfo
	for _, p := range w.in(start, end) {
		if !area.Contains(p.at) {
			var ok bool
			if area, ok = as.FindArea(p.at); !ok {
				continue
			}
		}
		if area.Prot&p.access == p.access {
			_ = as.Fault(k.ctx, p.at, p.access) // it will be asked for again
		}
	}
}

// replays reports whether the task runs in the checkpoint's memory, again.
func (t *Task) replays() bool {
	c := t.k.again.Load()
	return c != nil && t.proc.mm == c.mm
}

// mapped brings in what runs before have touched of a range that the program has
// just mapped, or may now use otherwise.
func (t *Task) mapped(start, length uint64) {
	if t.replays() {
		t.k.again.Load().working.bring(t.k, t.space(), gva(start), gva(start+length))
	}
}
