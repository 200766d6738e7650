package guestmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// opKind is an index of opTable.
type opKind int

// Kinds of operations.
const (
	opMap opKind = iota
	opUnmap
	opProtect
	opDiscard
	opBrk
	opReadAt  // a kernel's copy from the guest
	opWriteAt // and to it
	opLoad    // byte by byte, as a CPU does
	opStore
	opString
	opLoad32
	opStore32
	opSwap32
	opLoad64
	opStore64
	opSwap64
	opTouch
	opPopulate
	opPin
	opUnpin
	opDevice // a write, through a pin if there is one of the page
	opFork
	opClose
	opAdvise
	opLock
	opUnlock
	opLockAll
	opResident
	opSync
	opRemap
	opTruncate
	opFileWrite // write(2) to a file that is mapped
	opFileRead
	opLimit
	nOpKinds
)

func (k opKind) String() string {
	if k < 0 || k >= nOpKinds {
		return fmt.Sprintf("opKind(%d)", int(k))
	}
	return opTable[k].name
}

// opInfo is all there is to know of a kind.
type opInfo struct {
	name     string // the constant's
	weight   int    // how often it is drawn
	draw     func(g *generator, o *op)
	software func(w *opWorld, as *AddressSpace, o op) result
	kernel   func(k *kernelView, o op) kernelCall
}

// opTable has one entry for each kind. A call that is new is one more of them;
// the helper process knows no calls but by their numbers, and need not change.
var opTable [nOpKinds]opInfo

func init() {
	opTable = [nOpKinds]opInfo{
		opMap:      {"opMap", 18, drawMap, softMap, kernelMap},
		opUnmap:    {"opUnmap", 6, drawRange, softUnmap, kernelUnmap},
		opProtect:  {"opProtect", 10, drawProtect, softProtect, kernelProtect},
		opDiscard:  {"opDiscard", 5, drawRange, softDiscard, kernelDiscard},
		opBrk:      {"opBrk", 2, drawBrk, softBrk, kernelBrk},
		opReadAt:   {"opReadAt", 6, drawCopy, softReadAt, kernelReadAt},
		opWriteAt:  {"opWriteAt", 8, drawCopy, softWriteAt, kernelWriteAt},
		opLoad:     {"opLoad", 5, drawCopy, softReadTrouble, kernelLoad},
		opStore:    {"opStore", 9, drawCopy, softWriteTrouble, kernelStore},
		opString:   {"opString", 2, drawString, softString, kernelString},
		opLoad32:   {"opLoad32", 2, drawWord, softWord, kernelWord(4)},
		opStore32:  {"opStore32", 2, drawWord, softWord, kernelWord(4)},
		opSwap32:   {"opSwap32", 2, drawWord, softWord, kernelWord(4)},
		opLoad64:   {"opLoad64", 2, drawWord, softWord, kernelWord(8)},
		opStore64:  {"opStore64", 2, drawWord, softWord, kernelWord(8)},
		opSwap64:   {"opSwap64", 2, drawWord, softWord, kernelWord(8)},
		opTouch:    {"opTouch", 8, drawTouch, softTouch, kernelTouch},
		opPopulate: {"opPopulate", 3, drawPages, softPopulate, kernelPopulate},
		opPin:      {"opPin", 2, drawPages, softPin, kernelPopulate},
		opUnpin:    {"opUnpin", 2, drawNothing, softUnpin, kernelNothing},
		opDevice:   {"opDevice", 2, drawDevice, softDevice, kernelDevice},
		opFork:     {"opFork", 2, drawFork, softFork, kernelFork},
		opClose:    {"opClose", 1, drawNothing, softClose, kernelClose},
		opAdvise:   {"opAdvise", 14, drawAdvise, softAdvise, kernelAdvise},
		opRemap:    {"opRemap", 14, drawRemap, softRemap, kernelRemap},
		opLock:     {"opLock", 4, drawLock, softLock, kernelLock},
		opUnlock:   {"opUnlock", 2, drawLock, softUnlock, kernelUnlock},
		opLockAll:  {"opLockAll", 1, drawLockAll, softLockAll, kernelLockAll},
		opResident: {"opResident", 3, drawResident, softResident, kernelResident},
		opSync:     {"opSync", 3, drawSync, softSync, kernelSync},

		opTruncate:  {"opTruncate", 4, drawTruncate, softTruncate, kernelTruncate},
		opFileWrite: {"opFileWrite", 4, drawFile, softFileWrite, kernelFileWrite},
		opFileRead:  {"opFileRead", 3, drawFile, softFileRead, kernelFileRead},
		opLimit:     {"opLimit", 2, drawLimit, softLimit, kernelLimit},
	}
}

func softMap(w *opWorld, as *AddressSpace, o op) result {
	m := MapOptions{Addr: o.at, Length: o.length, Prot: o.prot, Flags: o.flags, Offset: o.off}
	if o.object > 0 {
		m.Object = w.objects[(o.object-1)%len(w.objects)]
		m.Access = worldFiles[(o.object-1)%len(w.objects)].access
	}
	at, err := as.Map(ctx, m)
	return result{errno: errnoOf(err), value: uint64(at)}
}

func softUnmap(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Unmap(o.at, o.length))}
}

func softProtect(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Protect(o.at, o.length, o.prot))}
}

func softDiscard(_ *opWorld, as *AddressSpace, o op) result {
	return result{errno: errnoOf(as.Discard(o.at, o.length))}
}

// brk(2) has no error: it answers with the break as it is.
func softBrk(_ *opWorld, as *AddressSpace, o op) result {
	now, err := as.Brk(o.at)
	r := result{value: uint64(now)}
	if err != nil && !errors.Is(err, syscall.ENOMEM) && !errors.Is(err, ErrAgain) {
		r.errno = errnoOf(err)
	}
	return r
}

// softReadAt answers as a system call does: a count if there is any byte.
func softReadAt(_ *opWorld, as *AddressSpace, o op) result {
	r, _ := readOp(as, o)
	return r
}

func readOp(as *AddressSpace, o op) (result, error) {
	p := make([]byte, min(o.length, maxCopy))
	n, err := as.ReadAt(ctx, p, o.at)
	r := result{value: uint64(n), data: p[:n]}
	if n == 0 {
		r.errno = errnoOf(err)
	}
	return r, err
}

func softWriteAt(_ *opWorld, as *AddressSpace, o op) result {
	r, _ := writeOp(as, o)
	return r
}

func writeOp(as *AddressSpace, o op) (result, error) {
	n, err := as.WriteAt(ctx, patternOf(o.data, int(min(o.length, maxCopy))), o.at)
	r := result{value: uint64(n)}
	if n == 0 {
		r.errno = errnoOf(err)
	}
	return r, err
}

// softReadTrouble answers as a CPU does: the bytes below the one that faulted,
// and the signal.
func softReadTrouble(_ *opWorld, as *AddressSpace, o op) result {
	r, err := readOp(as, o)
	r.errno, r.trouble = 0, troubleOf(err)
	return r
}

func softWriteTrouble(_ *opWorld, as *AddressSpace, o op) result {
	r, err := writeOp(as, o)
	r.errno, r.trouble = 0, troubleOf(err)
	return r
}

func softString(_ *opWorld, as *AddressSpace, o op) result {
	s, err := as.ReadCString(ctx, o.at, int(min(o.length, maxCopy)))
	r := result{errno: errnoOf(err), trouble: troubleOf(err), data: []byte(s), value: uint64(len(s))}
	if r.trouble != 0 {
		r.errno = 0
	}
	return r
}

// swapNew is what a swap of data stores.
func swapNew(o op) uint64 { return o.data*31 + 7 }

func softWord(_ *opWorld, as *AddressSpace, o op) (r result) {
	var err error
	var swapped bool
	switch o.kind {
	case opLoad32:
		var v uint32
		v, err = as.Load32(ctx, o.at)
		r.value = uint64(v)
	case opStore32:
		err = as.Store32(ctx, o.at, uint32(o.data))
	case opSwap32:
		swapped, err = as.CompareAndSwap32(ctx, o.at, uint32(o.data), uint32(swapNew(o)))
	case opLoad64:
		r.value, err = as.Load64(ctx, o.at)
	case opStore64:
		err = as.Store64(ctx, o.at, o.data)
	case opSwap64:
		swapped, err = as.CompareAndSwap64(ctx, o.at, o.data, swapNew(o))
	}
	if swapped {
		r.value = 1
	}
	if r.trouble = troubleOf(err); r.trouble == 0 {
		r.errno = errnoOf(err)
	}
	return r
}

// softTouch is one access of one byte; an execute access looks first whether
// there is a RET to run.
func softTouch(_ *opWorld, as *AddressSpace, o op) (r result) {
	if o.prot == Execute {
		var b [1]byte
		if _, err := as.ReadAt(ctx, b[:], o.at); err != nil {
			return result{trouble: troubleOf(err)}
		}
		if r.value = uint64(b[0]); b[0] != retByte {
			return r
		}
	}
	r.trouble = troubleOf(as.Fault(ctx, o.at, o.prot))
	return r
}

// pagesOf is the range of an op that goes page by page.
func pagesOf(o op) addr.Range {
	end, ok := o.at.Add(o.length)
	if !ok {
		end = ^addr.GVA(0).RoundDown()
	}
	return addr.Range{Start: o.at, End: end}
}

func softPopulate(_ *opWorld, as *AddressSpace, o op) result {
	return result{trouble: troubleOf(as.Populate(ctx, pagesOf(o), o.prot))}
}

func softPin(w *opWorld, as *AddressSpace, o op) result {
	p, err := as.Pin(ctx, pagesOf(o), o.prot)
	if err == nil {
		w.pins = append(w.pins, p)
	}
	return result{trouble: troubleOf(err)}
}

func softUnpin(w *opWorld, _ *AddressSpace, o op) result {
	if len(w.pins) > 0 {
		i := int(o.data % uint64(len(w.pins)))
		w.pins[i].Release()
		w.pins = append(w.pins[:i], w.pins[i+1:]...)
	}
	return result{}
}

// softDevice writes to a frame pinned for writing as a device does. As long as the page is
// where it was, that is a write to it that no permission stops: the frame is the
// space's own. (The kernel has no way to write so to a shared page that became
// read-only.)
func softDevice(w *opWorld, as *AddressSpace, o op) result {
	if a, ok := as.FindArea(o.at); ok && (a.Prot&ProtWrite != 0 || !a.Shared) {
		for _, p := range w.pins {
			if p.as != as || !p.r.Contains(o.at) || p.held == nil {
				continue
			}
			f := p.frames[(o.at-p.r.Start)/page]
			if e := as.pt.Find(o.at).Entry; !e.Has(pagetable.Present) || e.Frame() != f {
				continue
			}
			n := copy(w.mem.arena.Bytes(f)[o.at.PageOffset():], patternOf(o.data, int(o.length)))
			return result{value: uint64(n), pinned: true}
		}
	}
	return softWriteAt(w, as, o)
}

func softFork(w *opWorld, as *AddressSpace, o op) result {
	slot := o.data % maxFamily
	if w.spaces[slot] != nil {
		return result{skipped: true}
	}
	child, err := as.Fork()
	w.spaces[slot] = child
	return result{errno: errnoOf(err)}
}

func softClose(w *opWorld, as *AddressSpace, o op) result {
	if w.alive() == 1 {
		return result{skipped: true}
	}
	w.spaces[o.space] = nil
	return result{errno: errnoOf(as.Close())}
}
