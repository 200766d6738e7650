package guestmem

import (
	"math/rand/v2"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// hand is one worker. In each page of the slots it has one word that nobody else
// writes, so that it knows what must be there: what it stored last, unless
// something has been done to the page meanwhile that empties it. Pages are shared
// by all workers, copied on write, moved and forked under them; no store may get
// lost in that, nor go to a relative.
type hand struct {
	rng   *rand.Rand
	index int
	wrote map[place]written
}

type place struct {
	space uint64
	slot  int
}

// written is what a hand stored, and how often the page had been emptied then.
type written struct {
	word    uint64
	emptied uint64
	known   bool // false: something was emptying it just then
}

func newHand(index int) *hand {
	return &hand{rand.New(rand.NewPCG(rand.Uint64(), 7)), index, make(map[place]written)}
}

func slotAt(slot int) addr.GVA { return tortureBase + addr.GVA(slot)*page }

// ownWord returns where the hand's word is; that of the first is the last of the
// page. Those who are too many have none.
func (w *hand) ownWord() (addr.GVA, bool) {
	return ownWordOf(w.index), w.index < 64
}

func ownWordOf(index int) addr.GVA { return addr.GVA(63-index)*64 + 56 }

// anyWord returns where a word is: the hand's own, another's, or one that anybody
// writes.
func (w *hand) anyWord() addr.GVA {
	if w.rng.IntN(2) == 0 {
		return ownWordOf(w.rng.IntN(16))
	}
	return someWord(w.rng)
}

// someWord returns where in a page a word is that anybody writes.
func someWord(rng *rand.Rand) addr.GVA { return addr.GVA(rng.IntN(16)*32+3) * 8 }

// store stores the hand's own word, and remembers it.
func (x *torture) store(k *kin, a Accessor, w *hand, slot int) error {
	off, ok := w.ownWord()
	if !ok || w.rng.IntN(8) == 0 {
		return a.Store64(ctx, slotAt(slot)+someWord(w.rng), k.next())
	}
	emptied, quiet := k.layout.emptied[slot].since()
	word := k.next()
	err := a.Store64(ctx, slotAt(slot)+off, word)
	if err == nil {
		w.remember(k, slot, written{word, emptied, quiet})
	}
	return err
}

func (w *hand) remember(k *kin, slot int, what written) {
	if len(w.wrote) > 1000 {
		clear(w.wrote) // most of these spaces are closed
	}
	w.wrote[place{k.id, slot}] = what
}

// load loads a word, and where it is the hand's own, makes sure that it is still
// there.
func (x *torture) load(k *kin, a Accessor, w *hand, slot int) error {
	off, own := w.ownWord()
	if !own || w.rng.IntN(2) == 0 {
		gva := slotAt(slot) + w.anyWord()
		got, err := a.Load64(ctx, gva)
		if err == nil {
			x.look(k, gva, got)
		}
		return err
	}
	got, err := a.Load64(ctx, slotAt(slot)+off)
	if err != nil {
		return err
	}
	x.look(k, slotAt(slot)+off, got)
	last := w.wrote[place{k.id, slot}]
	if last.known && k.layout.emptied[slot].times.Load() == last.emptied && got != last.word {
		x.fail("space %d: slot %d holds %#x, where %#x was stored: the store is lost", k.id, slot, got, last.word)
	}
	return nil
}
