package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func (w *injectWorld) mapPages(space int, gva addr.GVA, n int, o MapOptions) {
	w.t.Helper()
	o.Addr, o.Length, o.Flags = gva, uint64(n)*page, o.Flags|MapFixed
	w.step(fmt.Sprintf("map %d pages at %v", n, gva), func() error {
		_, err := w.spaces[space].Map(endingContext{ctx}, o)
		return err
	}, func() {
		for i := range n {
			if n > 64 && i%512 > 3 && i%512 < 508 {
				w.large = true
				continue
			}
			v := whole(0)
			if o.Object != nil {
				v = whole(fileByte(i))
			}
			w.model[space][gva+addr.GVA(i)*page] = v
		}
	})
}

func (w *injectWorld) unmap(space int, gva addr.GVA, length uint64) {
	w.t.Helper()
	w.step(fmt.Sprintf("unmap %#x bytes at %v in space %d", length, gva, space), func() error {
		return w.spaces[space].Unmap(gva, length)
	}, func() {
		for p := range w.model[space] {
			if p >= gva && p < gva+addr.GVA(length) {
				delete(w.model[space], p)
			}
		}
	})
}

// discard drops n pages of private anonymous memory.
// remap moves pages to where nothing is, or what is there goes.
func (w *injectWorld) remap(space int, from addr.GVA, n int, to addr.GVA, now int, flags RemapFlags) {
	w.t.Helper()
	w.step(fmt.Sprintf("remap %d pages at %v to %d at %v in space %d", n, from, now, to, space), func() error {
		_, err := w.spaces[space].Remap(endingContext{ctx}, RemapOptions{
			Addr: from, OldLength: uint64(n) * page, NewLength: uint64(now) * page, Flags: RemapMayMove | RemapFixed | flags, NewAddr: to})
		return err
	}, func() {
		model := w.model[space]
		for i := range n {
			source := from + addr.GVA(i)*page
			if v, there := model[source]; there && i < now {
				defer func() { model[to+addr.GVA(i)*page] = v }()
			}
			delete(model, source)
			if flags&RemapDontUnmap != 0 {
				model[source] = whole(0)
			}
		}
		for i := range now {
			if model[to+addr.GVA(i)*page] = whole(0); i < n {
				delete(model, to+addr.GVA(i)*page)
			}
		}
	})
}

func (w *injectWorld) discard(space int, gva addr.GVA, n int) {
	w.t.Helper()
	w.step(fmt.Sprintf("discard %d pages at %v in space %d", n, gva, space), func() error {
		return w.spaces[space].Discard(gva, uint64(n)*page)
	}, func() {
		for p := range w.model[space] {
			if p >= gva && p < gva+addr.GVA(n)*page {
				w.model[space][p] = whole(0)
			}
		}
	})
}

func (w *injectWorld) protect(space int, gva addr.GVA, n int, prot Prot) {
	w.t.Helper()
	w.step(fmt.Sprintf("protect %d pages at %v in space %d as %v", n, gva, space, prot), func() error {
		return w.spaces[space].Protect(gva, uint64(n)*page, prot)
	}, nil)
}

func (w *injectWorld) fork(space int) {
	w.t.Helper()
	var child *AddressSpace
	w.step(fmt.Sprintf("fork space %d", space), func() (err error) {
		child, err = w.spaces[space].Fork()
		return err
	}, func() { w.addSpace(child, space) })
}

func (w *injectWorld) brk(space int, pages int) {
	w.t.Helper()
	to := injHeap + addr.GVA(pages)*page
	w.step(fmt.Sprintf("heap of %d pages in space %d", pages, space), func() error {
		_, err := w.spaces[space].Brk(to)
		return err
	}, func() {
		m := w.model[space]
		for i := range addr.GVA(16) {
			switch p, was := injHeap+i*page, m[injHeap+i*page]; {
			case p < to:
				m[p] = was
			default:
				delete(m, p)
			}
		}
	})
}

func (w *injectWorld) pin(space int, gva addr.GVA, n int, access Access) {
	w.t.Helper()
	w.step(fmt.Sprintf("pin %d pages at %v in space %d", n, gva, space), func() error {
		p, err := w.spaces[space].Pin(endingContext{ctx}, addr.Range{Start: gva, End: gva + addr.GVA(n)*page}, access)
		if err == nil {
			w.pins = append(w.pins, p)
		}
		return err
	}, nil)
}

func (w *injectWorld) releasePins() {
	for _, p := range w.pins {
		p.Release()
	}
	w.pins = nil
	if !w.o.sparse {
		w.verify("letting the pins go")
	}
}

func (w *injectWorld) populate(space int, gva addr.GVA, n int, access Access) {
	w.t.Helper()
	w.step(fmt.Sprintf("populate %d pages at %v in space %d", n, gva, space), func() error {
		return w.spaces[space].Populate(endingContext{ctx}, addr.Range{Start: gva, End: gva + addr.GVA(n)*page}, access)
	}, nil)
}

func (w *injectWorld) compareAndSwap(space int, gva addr.GVA, was, now byte) {
	w.t.Helper()
	word := func(b byte) uint32 { return 0x01010101 * uint32(b) }
	w.step(fmt.Sprintf("compare and swap at %v in space %d", gva, space), func() error {
		ok, err := w.spaces[space].CompareAndSwap32(endingContext{ctx}, gva, word(was), word(now))
		if err == nil && !ok {
			return errors.New("not swapped")
		}
		return err
	}, func() { w.model[space][gva] = pageBytes{now, w.model[space][gva].rest} })
}

// closeSpace cannot fail, whatever the host does meanwhile.
func (w *injectWorld) closeSpace(i int) {
	w.t.Helper()
	if i >= len(w.spaces) || w.spaces[i] == nil {
		return
	}
	if err := w.run.During(w.spaces[i].Close); err != nil {
		w.t.Errorf("close space %d: %v", i, err)
	}
	w.spaces[i], w.model[i] = nil, nil
	if !w.dead && !w.o.sparse {
		w.verify(fmt.Sprintf("closing space %d", i))
	}
}
