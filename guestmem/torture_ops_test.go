package guestmem

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"sync/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	didRead = iota
	didWrite
	didSection
	didCopy
	didMap
	didUnmap
	didProtect
	didDiscard
	didFork
	didClose
	didPin
	didLedger
	didBrk
	didSum
	didFile
	didFrozen
	didRemap
	didStats
	nDid
)

func (x *torture) step(k *kin, a Accessor, w *hand) (what int) {
	rng := w.rng
	slot := rng.IntN(tortureSlots)
	n := 1 + rng.IntN(min(6, tortureSlots-slot))
	var err error
	switch d := rng.IntN(100); {
	case d < 18:
		what, err = didRead, x.load(k, a, w, slot)
	case d < 33:
		what, err = didWrite, x.store(k, a, w, slot)
	case d < 41:
		what = didSection
		x.section(k, a, w, slot)
	case d < 47:
		what, err = didCopy, x.copies(k, a, slot, n, rng)
	case d < 53:
		what = didMap
	case d < 57:
		what = didUnmap
	case d < 63:
		what = didProtect
	case d < 66:
		what = didDiscard
	case d < 71:
		what, err = didFork, x.fork(k)
	case d < 75:
		what = didClose
	case d < 78:
		what, err = didPin, x.pin(k, slotAt(slot), n, rng)
	case d < 86:
		what = didLedger
		x.ledger(k, a, rng)
	case d < 88:
		what, err = didBrk, x.brk(k, a, rng)
	case d < 92:
		what, err = didSum, x.sum(a)
	case d < 97:
		what, err = didFile, x.file(k, a, rng)
	case d < 98 && rng.IntN(4) == 0:
		what, err = didFrozen, x.frozen()
	case d < 99:
		what, err = didRemap, k.layout.away(k.as, slot, n)
	default:
		what = didStats
		x.lookAround(k, rng)
	}
	x.explain(what, err)
	x.explain(what, x.change(k, what, slot, n, rng))
	return what
}

// explain fails if races with other calls do not explain the error.
func (x *torture) explain(what int, err error) {
	if !tolerable(err) {
		x.fail("operation %d: %v", what, err)
	}
}

// change does what to n slots, if it is a change of slots.
func (x *torture) change(k *kin, what, slot, n int, rng *rand.Rand) error {
	as, gva, length := k.as, slotAt(slot), uint64(n)*page
	switch what {
	case didMap:
		prot := []Prot{rw, rw, rw, r_, rw | ProtExec, ProtNone}[rng.IntN(6)]
		return k.layout.replace(as, slot, n, prot, func() error {
			_, err := as.Map(ctx, MapOptions{Addr: gva, Length: length, Prot: prot, Flags: anon | MapFixed})
			return err
		})
	case didUnmap:
		return k.layout.unmap(as, slot, n)
	case didProtect:
		return k.layout.protect(as, slot, n, []Prot{rw, rw, rw, r_, r_, ProtNone}[rng.IntN(6)])
	case didDiscard:
		return k.layout.reset(slot, n, func() error { return as.Discard(gva, length) })
	}
	return nil
}

// brk moves the end of the heap, and uses it.
func (x *torture) brk(k *kin, a Accessor, rng *rand.Rand) error {
	_, err := k.as.Brk(tortureHeap + addr.GVA(rng.IntN(8))*page)
	if err == nil {
		err = a.Store64(ctx, tortureHeap+8, k.next())
	}
	return err
}

// lookAround asks for what may be asked at any time.
func (x *torture) lookAround(k *kin, rng *rand.Rand) {
	if rng.IntN(4) == 0 {
		_ = x.m.Check() // may take frames in flight for lost; must not fail otherwise
		return
	}
	x.explain(didStats, x.adviseOrLock(k, rng))
	x.m.Stats()
	_ = k.as.String()
	k.as.Stats()
}

// adviseOrLock does what changes no byte: areas split and merge, pages are faulted in.
// Locks are of the file alone, which nobody discards.
func (x *torture) adviseOrLock(k *kin, rng *rand.Rand) error {
	slot := rng.IntN(tortureSlots)
	n := uint64(1+rng.IntN(min(6, tortureSlots-slot))) * page
	var err error
	switch rng.IntN(5) {
	case 0:
		err = k.as.Advise(ctx, slotAt(slot), n, []Advice{AdviceRandom, AdviceNormal, AdviceDontDump, AdviceDoDump}[rng.IntN(4)])
	case 1:
		err = k.as.Advise(ctx, slotAt(slot), n, []Advice{AdvicePopulateRead, AdvicePopulateWrite}[rng.IntN(2)])
	case 2:
		err = k.as.Lock(ctx, tortureFile, 2*page, LockMode(rng.IntN(2)))
	case 3:
		err = k.as.Unlock(tortureFile, 2*page)
	case 4:
		err = k.as.SetName(slotAt(slot), n, []string{"a", "b"}[rng.IntN(2)])
	}
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrAgain) || errors.Is(err, ErrNoBacking) {
		return nil // the area does not allow it, or memory is short
	}
	return err
}

// copies reads or writes several pages at once.
func (x *torture) copies(k *kin, a Accessor, slot, n int, rng *rand.Rand) error {
	gva, buf := slotAt(slot), make([]byte, n*int(page))
	if rng.IntN(2) == 0 {
		got, err := a.ReadAt(ctx, buf, gva)
		for off := 0; off+8 <= got; off += 8 {
			if w := binary.LittleEndian.Uint64(buf[off:]); w != 0 {
				x.look(k, gva+addr.GVA(off), w)
			}
		}
		return err
	}
	for off := 3 * 8; off < len(buf); off += 256 {
		binary.LittleEndian.PutUint64(buf[off:], k.next())
	}
	return k.layout.reset(slot, n, func() error {
		_, err := a.WriteAt(ctx, buf, gva)
		return err
	})
}

func (x *torture) fork(k *kin) error {
	x.mu.Lock()
	full := len(x.family) >= x.most
	x.mu.Unlock()
	if full {
		return nil
	}
	var ledger [ledgerPages]beforeFork
	for i := range k.ledger {
		ledger[i] = k.ledger[i].before()
	}
	if x.devices != nil {
		x.devices.Lock()
	}
	child, err := k.as.Fork()
	if x.devices != nil {
		x.devices.Unlock()
	}
	if err == nil {
		x.join(child, k, &ledger)
	}
	return err
}

// pin holds pages and looks at their frames as a device would.
func (x *torture) pin(k *kin, gva addr.GVA, n int, rng *rand.Rand) error {
	p, err := k.as.Pin(ctx, addr.Range{Start: gva, End: gva + addr.GVA(n)*page}, []Access{Read, Write}[rng.IntN(2)])
	if err != nil {
		return err
	}
	defer p.Release()
	for i, f := range p.Frames() {
		x.look(k, gva+addr.GVA(i)*page, atomic.LoadUint64(x.m.arena.Word64(f, uint64(someWord(rng)))))
		runtime.Gosched()
		// It is pinned: it is nobody else's, whatever was unmapped or forked.
		x.look(k, gva+addr.GVA(i)*page, atomic.LoadUint64(x.m.arena.Word64(f, uint64(someWord(rng)))))
	}
	return nil
}

// sum increments a word that the whole family shares.
func (x *torture) sum(a Accessor) error {
	for {
		v, err := a.Load64(ctx, tortureSums)
		if err != nil {
			return err
		}
		ok, err := a.CompareAndSwap64(ctx, tortureSums, v, v+1)
		if ok {
			x.sums.Add(1)
		}
		if ok || err != nil {
			return err
		}
	}
}

// file reads the object, each byte of which is its page's number, or writes to
// its own copy.
func (x *torture) file(k *kin, a Accessor, rng *rand.Rand) error {
	i := rng.IntN(tortureFilePages)
	gva := tortureFile + addr.GVA(i)*page
	switch rng.IntN(4) {
	case 0:
		return a.Store64(ctx, gva+8, k.next())
	case 1: // splits and merges areas; their offsets have to go on telling the truth
		prot := []Prot{rw, rw | ProtExec}[rng.IntN(2)]
		n := 1 + rng.IntN(tortureFilePages-i)
		if rng.IntN(2) == 0 {
			return k.as.Protect(gva, uint64(n)*page, prot)
		}
		_, err := k.as.Map(ctx, MapOptions{Addr: gva, Length: uint64(n) * page, Prot: prot, Flags: MapPrivate | MapFixed, Object: x.object, Offset: uint64(i) * page})
		return err
	}
	b, err := a.Load32(ctx, gva+100)
	if err == nil && b != uint32(i)*0x01010101 {
		x.fail("file page %d reads %#x", i, b)
	}
	if w, err := a.Load64(ctx, gva+8); err == nil && w != uint64(i)*0x0101010101010101 {
		x.look(k, gva+8, w)
	}
	return err
}

// frozen opens a window, in which no byte may change (R15) but what devices
// write, and what is freed meanwhile, which nobody looks at any more.
func (x *torture) frozen() error {
	type look struct {
		sum   uint64
		stamp cow.Stamp
	}
	seed := maphash.MakeSeed()
	all := func() map[addr.PFN]look {
		out := make(map[addr.PFN]look)
		for f := x.m.arena.First(); f < x.m.arena.First()+128; f++ {
			stamp, sum := x.m.pool.Stamp(f), maphash.Bytes(seed, x.m.arena.Bytes(f))
			if x.m.pool.Live(f) && !x.m.pool.IsPinned(f) {
				out[f] = look{sum, stamp}
			}
		}
		return out
	}
	return x.m.window(func() error {
		before := all()
		for range 10 {
			runtime.Gosched()
		}
		for f, now := range all() {
			if was, ok := before[f]; ok && was.stamp == now.stamp && was.sum != now.sum {
				x.fail("frame %v was written while a window was open", f)
			}
		}
		return nil
	})
}
