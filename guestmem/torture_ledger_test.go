package guestmem

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The ledger says what some pages must hold, to the word. They lie on both sides
// of the slots, in the same leaf tables, and so are copied, moved, shared and
// swept beside them, and an operation on slots that goes a page too far hits one.
//
// Operations on one page of one space are one at a time; forks happen whenever
// they like. What the child must hold follows from what was written down of the
// parent's page before the fork and after it:
//
//	nothing happened between     what it held
//	one operation overlaps       what it held before that, or after
//	more                         anything that the child may read at all
//
// The first load by the child settles which.
const (
	ledgerBelow = 4
	ledgerPages = 8
)

func ledgerAt(i int) addr.GVA {
	if i < ledgerBelow {
		return tortureBase - ledgerBelow*page + addr.GVA(i)*page
	}
	return tortureBase + tortureSlots*page + addr.GVA(i-ledgerBelow)*page
}

// ledgerWord is where in the page the word is: the last, and on odd pages the
// first.
func ledgerWord(i int) addr.GVA {
	if i%2 == 0 {
		return ledgerAt(i) + page - 8
	}
	return ledgerAt(i)
}

type ledgerPage struct {
	op sync.Mutex // one operation at a time

	mu      sync.Mutex // never held across one
	seq     uint64     // odd during an operation that changes the page
	holds   possible   // when seq is even, and before an operation while it is odd
	then    uint64     // after that operation
	locked  bool       // the page is read-only
	unknown bool       // whether it is, is not known
}

// possible is what a page may hold.
type possible struct {
	either [2]uint64
	any    bool
}

func exactly(w uint64) possible { return possible{either: [2]uint64{w, w}} }

func (p possible) has(w uint64) bool { return p.any || w == p.either[0] || w == p.either[1] }

func (p possible) isExact() bool { return !p.any && p.either[0] == p.either[1] }

func (p possible) or(w uint64) possible {
	if p.isExact() {
		return possible{either: [2]uint64{p.either[0], w}}
	}
	return possible{any: true}
}

// begin and commit go around what makes the page hold w.
func (l *ledgerPage) begin(w uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	l.then = w
}

func (l *ledgerPage) commit(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	if err == nil {
		l.holds = exactly(l.then)
	}
}

// beforeFork is what a page was when a fork began.
type beforeFork struct {
	seq     uint64
	holds   possible
	then    uint64
	locked  bool
	unknown bool
}

func (l *ledgerPage) before() beforeFork {
	l.mu.Lock()
	defer l.mu.Unlock()
	return beforeFork{l.seq, l.holds, l.then, l.locked, l.unknown}
}

// inherit fills in the page of a child from its parent's, which was b when the
// fork began. Nobody else has the child yet.
func (l *ledgerPage) inherit(parent *ledgerPage, b beforeFork) {
	now := parent.before()
	l.holds, l.locked, l.unknown = b.holds, b.locked, b.unknown
	inProgress := b.seq%2 == 1
	switch {
	case now.seq == b.seq && !inProgress:
		return
	case inProgress && now.seq <= b.seq+1:
		l.holds = b.holds.or(b.then)
	case !inProgress && now.seq <= b.seq+2:
		l.holds = b.holds.or(now.then)
	default:
		l.holds = possible{any: true}
	}
	l.unknown = true
}

// ledger does something to a page of the ledger.
func (x *torture) ledger(k *kin, a Accessor, rng *rand.Rand) {
	i := rng.IntN(ledgerPages)
	l := &k.ledger[i]
	l.op.Lock()
	defer l.op.Unlock()
	if l.unknown {
		x.ledgerLoad(k, i)
		if x.ledgerProtect(k, i, false); l.unknown {
			return // no memory
		}
	}
	switch d := rng.IntN(16); {
	case d < 5:
		x.ledgerLoad(k, i)
	case d < 10:
		w := k.next()
		l.begin(w)
		err := a.Store64(ctx, ledgerWord(i), w)
		l.commit(err)
		if !(err == nil && !l.locked || errors.Is(err, ErrAccess) && l.locked || errors.Is(err, ErrNoMemory)) {
			x.fail("space %d stores to page %d of the ledger, read-only %v: %v", k.id, i, l.locked, err)
		}
		x.ledgerLoad(k, i)
	case d < 12:
		x.ledgerLoad(k, i)
		x.ledgerProtect(k, i, !l.locked)
	case d < 13:
		l.begin(0)
		err := k.as.Discard(ledgerAt(i), page)
		l.commit(err)
		x.mustOnly(err, ErrNoMemory)
	case d < 14 && !l.locked:
		l.begin(0)
		_, err := k.as.Map(ctx, MapOptions{Addr: ledgerAt(i), Length: page, Prot: rw, Flags: anon | MapFixed})
		l.commit(err)
		x.mustOnly(err, ErrNoMemory)
	default:
		x.ledgerPin(k, a, i)
	}
}

func (x *torture) mustOnly(err, tolerated error) {
	if err != nil && !errors.Is(err, tolerated) {
		x.fail("on a page of the ledger: %v", err)
	}
}

// ledgerLoad reads a page, and settles what it holds.
func (x *torture) ledgerLoad(k *kin, i int) {
	l := &k.ledger[i]
	w, err := k.as.Load64(ctx, ledgerWord(i))
	if err != nil {
		x.mustOnly(err, ErrNoMemory)
		return
	}
	x.look(k, ledgerWord(i), w)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.holds.has(w) {
		x.fail("space %d reads %#x in page %d of the ledger, want %#x", k.id, w, i, l.holds.either)
	}
	l.holds = exactly(w)
}

// ledgerProtect makes a page read-only, or writable. It does not change what the
// page holds, but whether it may be written. It does nothing where that is not
// settled.
func (x *torture) ledgerProtect(k *kin, i int, lock bool) {
	l := &k.ledger[i]
	prot := rw
	if lock {
		prot = r_
	}
	l.mu.Lock()
	exact := l.holds.isExact()
	if exact {
		l.seq++
		l.then = l.holds.either[0]
	}
	l.mu.Unlock()
	if !exact {
		return
	}
	err := k.as.Protect(ledgerAt(i), page, prot)
	l.mu.Lock()
	l.seq++
	if err == nil {
		l.locked, l.unknown = lock, false
	}
	l.mu.Unlock()
	x.mustOnly(err, ErrNoMemory)
}

// ledgerPin has a device and a CPU write to the page in turn: each must see what
// the other wrote, whatever is forked meanwhile (R7).
func (x *torture) ledgerPin(k *kin, a Accessor, i int) {
	l, gva := &k.ledger[i], ledgerWord(i)
	access := Write
	if l.locked {
		access = Read
	}
	p, err := k.as.Pin(ctx, addr.Range{Start: gva, End: gva + 8}, access)
	if err != nil {
		x.mustOnly(err, ErrNoMemory)
		return
	}
	defer p.Release()
	if l.locked {
		// It is the page's own frame even so: what is written once it may be
		// written again goes there.
		x.ledgerLoad(k, i)
		if x.ledgerProtect(k, i, false); l.locked {
			return // no memory
		}
	}
	device := x.m.arena.Word64(p.Frames()[0], gva.PageOffset())
	for range 3 {
		w := k.next()
		l.begin(w)
		x.deviceStores(device, w)
		l.commit(nil)
		x.ledgerLoad(k, i)
		w = k.next()
		l.begin(w)
		err := a.Store64(ctx, gva, w)
		l.commit(err)
		if err != nil {
			x.mustOnly(err, ErrNoMemory)
			return
		}
		if got := atomic.LoadUint64(device); got != w {
			x.fail("space %d: the device reads %#x in page %d of the ledger, the CPU wrote %#x", k.id, got, i, w)
		}
	}
}

func (x *torture) deviceStores(to *uint64, w uint64) {
	if x.devices != nil {
		x.devices.RLock()
		defer x.devices.RUnlock()
	}
	atomic.StoreUint64(to, w)
}
