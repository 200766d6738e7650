package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// advise gives advice, and apply says what it does to a page.
func (w *injectWorld) advise(space int, gva addr.GVA, n int, v Advice, apply func(addr.GVA)) {
	w.t.Helper()
	w.step(fmt.Sprintf("advice %d for %d pages at %v in space %d", v, n, gva, space), func() error {
		return w.spaces[space].Advise(ctx, gva, uint64(n)*page, v)
	}, func() {
		for i := range addr.GVA(n) {
			if apply != nil {
				apply(gva + i*page)
			}
		}
	})
}

// forkAdvised forks, and tells the model what the child does not get.
func (w *injectWorld) forkAdvised(space int, gone, empty addr.Range) {
	w.t.Helper()
	var child *AddressSpace
	w.step(fmt.Sprintf("fork space %d with advice", space), func() (err error) {
		child, err = w.spaces[space].Fork()
		return err
	}, func() {
		w.addSpace(child, space)
		for p := range w.model[len(w.spaces)-1] {
			switch {
			case gone.Contains(p):
				delete(w.model[len(w.spaces)-1], p)
			case empty.Contains(p):
				w.model[len(w.spaces)-1][p] = whole(0)
			}
		}
	})
}

// advised is areas that a child does not get as they are, locks and guards. Guards
// that are installed lie in one leaf table: what an error leaves of several is the
// head.
func (w *injectWorld) advised() {
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.mapPages(0, injShared, 2, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.write(0, injPrivate, 6, 1)
	w.advise(0, injPrivate+2*page, 2, AdviceDontFork, nil) // over the border of two leaf tables
	w.advise(0, injPrivate+4*page, 1, AdviceWipeOnFork, nil)
	w.advise(0, injShared, 1, AdviceDontFork, nil)
	gone := addr.Range{Start: injPrivate + 2*page, End: injPrivate + 4*page}
	empty := addr.Range{Start: gone.End, End: gone.End + page}
	w.advise(0, injShared, 1, AdviceDoFork, nil)
	w.forkAdvised(0, gone, empty)
	w.write(1, injPrivate, 2, 2)
	w.write(0, injPrivate, 6, 3)
	w.write(1, injPrivate+4*page, 2, 4)
	w.forkAdvised(1, addr.Range{}, empty)
	zeroed := func(space int) func(addr.GVA) {
		return func(p addr.GVA) { w.model[space][p] = whole(0) }
	}
	guards := func(space int) {
		w.t.Helper()
		w.step(fmt.Sprintf("guards come and go in space %d", space), func() error {
			as := w.spaces[space]
			if err := as.Advise(ctx, injPrivate, 2*page, AdviceGuardInstall); err != nil {
				return err
			}
			return as.Advise(ctx, injPrivate, 2*page, AdviceGuardRemove) // in tables of its own
		}, func() {
			zeroed(space)(injPrivate)
			zeroed(space)(injPrivate + page)
		})
	}
	guards(0)
	guards(1)
	w.write(0, injPrivate, 3, 5)
	w.discard(0, injPrivate, 3) // leaf by leaf
	w.closeSpace(0)
}
