package guestmem

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A word of guest-physical memory is loaded and stored as one atomic access, as
// the guest's own CPUs do it. Words are little-endian and aligned, so that each
// lies in one page. Those of 8 and 16 bits are part of an aligned 32-bit one,
// whose other bits a store leaves alone.

// wordOp is what is done to a word.
type wordOp int

const (
	loadWord wordOp = iota
	storeWord
	swapWord
)

var wordOpNames = [...]string{"load", "store", "compare and swap"}

// wordAt performs op on the word of size bytes at gpa: it returns the word that
// was loaded, or whether it was swapped.
func (a PhysAccessor) wordAt(op wordOp, gpa addr.GPA, size, old, new uint64) (v uint64, swapped bool, err error) {
	access := Write
	if op == loadWord {
		access = Read
	}
	if uint64(gpa)&(size-1) != 0 {
		return 0, false, regionError(wordOpNames[op], gpa, size, fmt.Errorf("not aligned to %d bytes: %w", size, ErrInvalid))
	}
	for {
		a.h.Enter(noSpace)
		w, why, r := a.m.word(gpa, access)
		ok := true
		if why == stopNone {
			if r.isGuarded() {
				ok = guard(func() { v, swapped = w.do(op, size, old, new) })
			} else {
				v, swapped = w.do(op, size, old, new)
			}
		}
		a.h.Exit()
		if why == stopNone && ok {
			return v, swapped, nil
		}
		if !ok {
			why = stopLost
		}
		if err := a.m.resolveWord(gpa, why, r, access); err != nil {
			return 0, false, regionError(wordOpNames[op], gpa, size, err)
		}
	}
}

// word finds the word at gpa, in the caller's section.
func (m *Memory) word(gpa addr.GPA, access Access) (wordRef, stop, *Region) {
	if access == Read && !m.door.passesLoad() || access != Read && !m.door.passes() {
		return wordRef{}, stopShut, nil
	}
	hot := m.regions.Load().find(gpa)
	if hot == nil {
		return wordRef{}, stopHole, nil
	}
	r := hot.r
	off := uint64(gpa - r.base)
	if access == Read {
		if !r.readable.has(off / addr.PageSize) {
			return wordRef{}, stopNotReady, r
		}
	} else {
		if r.readOnly {
			return wordRef{}, stopReadOnly, r
		}
		if !r.writable.has(off / addr.PageSize) {
			return wordRef{}, stopNotReady, r
		}
		r.dirty.mark(off / addr.PageSize) // before the store: see writeSection
		if storeHookGPA != nil {
			storeHookGPA()
		}
	}
	return wordIn(r.look, off), stopNone, r
}

func (m *Memory) resolveWord(gpa addr.GPA, why stop, r *Region, access Access) error {
	if why == stopNotReady {
		r.pop.RLock()
		intercepted := r.intercepted && !r.gone
		r.pop.RUnlock()
		if intercepted {
			return fmt.Errorf("region %v is reached by system calls, which have no atomic accesses: %w", r, ErrNotSupported)
		}
		return r.ready(context.Background(), r.pageOf(gpa), 1, access)
	}
	_, err := m.resolve(nil, gpa, why, r, access)
	return err
}

// wordRef is the aligned 64-bit word around an address.
type wordRef struct {
	words *[2]uint32 // the halves, low first
	whole *uint64
	off   uint64 // of the address in it, in bytes
}

func (w wordRef) do(op wordOp, size, old, new uint64) (v uint64, swapped bool) {
	switch {
	case size == 8 && op == loadWord:
		return atomic.LoadUint64(w.whole), false
	case size == 8 && op == storeWord:
		atomic.StoreUint64(w.whole, new)
		return 0, false
	case size == 8:
		return 0, atomic.CompareAndSwapUint64(w.whole, old, new)
	}
	half := &w.words[w.off/4]
	switch {
	case size == 4 && op == loadWord:
		return uint64(atomic.LoadUint32(half)), false
	case size == 4 && op == storeWord:
		atomic.StoreUint32(half, uint32(new))
		return 0, false
	case size == 4:
		return 0, atomic.CompareAndSwapUint32(half, uint32(old), uint32(new))
	}
	shift, mask := w.off%4*8, uint32(1)<<(size*8)-1
	if op == loadWord {
		return uint64(atomic.LoadUint32(half) >> shift & mask), false
	}
	for {
		v := atomic.LoadUint32(half)
		if atomic.CompareAndSwapUint32(half, v, v&^(mask<<shift)|uint32(new)&mask<<shift) {
			return 0, false
		}
	}
}

// Load8 is Memory.Load8.
func (a PhysAccessor) Load8(gpa addr.GPA) (uint8, error) {
	v, _, err := a.wordAt(loadWord, gpa, 1, 0, 0)
	return uint8(v), err
}

// Load16 is Memory.Load16.
func (a PhysAccessor) Load16(gpa addr.GPA) (uint16, error) {
	v, _, err := a.wordAt(loadWord, gpa, 2, 0, 0)
	return uint16(v), err
}

// Load32 is Memory.Load32.
func (a PhysAccessor) Load32(gpa addr.GPA) (uint32, error) {
	v, _, err := a.wordAt(loadWord, gpa, 4, 0, 0)
	return uint32(v), err
}

// Load64 is Memory.Load64.
func (a PhysAccessor) Load64(gpa addr.GPA) (uint64, error) {
	v, _, err := a.wordAt(loadWord, gpa, 8, 0, 0)
	return v, err
}

// Store8 is Memory.Store8.
func (a PhysAccessor) Store8(gpa addr.GPA, v uint8) error {
	_, _, err := a.wordAt(storeWord, gpa, 1, 0, uint64(v))
	return err
}

// Store16 is Memory.Store16.
func (a PhysAccessor) Store16(gpa addr.GPA, v uint16) error {
	_, _, err := a.wordAt(storeWord, gpa, 2, 0, uint64(v))
	return err
}

// Store32 is Memory.Store32.
func (a PhysAccessor) Store32(gpa addr.GPA, v uint32) error {
	_, _, err := a.wordAt(storeWord, gpa, 4, 0, uint64(v))
	return err
}

// Store64 is Memory.Store64.
func (a PhysAccessor) Store64(gpa addr.GPA, v uint64) error {
	_, _, err := a.wordAt(storeWord, gpa, 8, 0, v)
	return err
}

// CompareAndSwap32 is Memory.CompareAndSwap32.
func (a PhysAccessor) CompareAndSwap32(gpa addr.GPA, old, new uint32) (bool, error) {
	_, swapped, err := a.wordAt(swapWord, gpa, 4, uint64(old), uint64(new))
	return swapped, err
}

// CompareAndSwap64 is Memory.CompareAndSwap64.
func (a PhysAccessor) CompareAndSwap64(gpa addr.GPA, old, new uint64) (bool, error) {
	_, swapped, err := a.wordAt(swapWord, gpa, 8, old, new)
	return swapped, err
}

// Load8 loads the byte at gpa.
//
// Errors: as ReadAt; ErrNotSupported where the region was intercepted and has
// no alias.
func (m *Memory) Load8(gpa addr.GPA) (uint8, error) {
	v, _, err := m.wordAt(loadWord, gpa, 1, 0, 0)
	return uint8(v), err
}

// Load16 loads the aligned 16-bit word at gpa in one atomic access.
//
// Errors: as Load8; ErrInvalid if gpa is not aligned.
func (m *Memory) Load16(gpa addr.GPA) (uint16, error) {
	v, _, err := m.wordAt(loadWord, gpa, 2, 0, 0)
	return uint16(v), err
}

// Load32 is Load16 for 32 bits.
func (m *Memory) Load32(gpa addr.GPA) (uint32, error) {
	v, _, err := m.wordAt(loadWord, gpa, 4, 0, 0)
	return uint32(v), err
}

// Load64 is Load16 for 64 bits.
func (m *Memory) Load64(gpa addr.GPA) (uint64, error) {
	v, _, err := m.wordAt(loadWord, gpa, 8, 0, 0)
	return v, err
}

// Store8 stores the byte at gpa and counts its page dirty.
//
// Errors: as Load8; ErrReadOnly.
func (m *Memory) Store8(gpa addr.GPA, v uint8) error {
	_, _, err := m.wordAt(storeWord, gpa, 1, 0, uint64(v))
	return err
}

// Store16 stores the aligned 16-bit word at gpa in one atomic access, and counts
// its page dirty.
//
// Errors: as Load16; ErrReadOnly.
func (m *Memory) Store16(gpa addr.GPA, v uint16) error {
	_, _, err := m.wordAt(storeWord, gpa, 2, 0, uint64(v))
	return err
}

// Store32 is Store16 for 32 bits.
func (m *Memory) Store32(gpa addr.GPA, v uint32) error {
	_, _, err := m.wordAt(storeWord, gpa, 4, 0, uint64(v))
	return err
}

// Store64 is Store16 for 64 bits.
func (m *Memory) Store64(gpa addr.GPA, v uint64) error {
	_, _, err := m.wordAt(storeWord, gpa, 8, 0, v)
	return err
}

// CompareAndSwap32 compares the aligned 32-bit word at gpa with old and, if
// equal, stores new, in one atomic step. The page counts dirty either way.
//
// Errors: as Store32.
func (m *Memory) CompareAndSwap32(gpa addr.GPA, old, new uint32) (bool, error) {
	_, swapped, err := m.wordAt(swapWord, gpa, 4, uint64(old), uint64(new))
	return swapped, err
}

// CompareAndSwap64 is CompareAndSwap32 for 64 bits.
func (m *Memory) CompareAndSwap64(gpa addr.GPA, old, new uint64) (bool, error) {
	_, swapped, err := m.wordAt(swapWord, gpa, 8, old, new)
	return swapped, err
}

// wordAt is PhysAccessor.wordAt with a borrowed handle.
func (m *Memory) wordAt(op wordOp, gpa addr.GPA, size, old, new uint64) (uint64, bool, error) {
	h := m.domain.Borrow()
	v, swapped, err := PhysAccessor{m, h}.wordAt(op, gpa, size, old, new)
	m.domain.GiveBack(h)
	return v, swapped, err
}
