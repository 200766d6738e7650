package guestmem

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// MaxNameLength is the longest name of an area, in bytes.
const MaxNameLength = 79

// SetName gives the anonymous areas in [start, start+length), private or shared, a
// name, as prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME) does; areas with different names
// do not merge. Children of Fork have it too. It waits for nobody but other
// changes.
//
// Errors: ErrInvalid (a name that is longer than MaxNameLength, or has a byte that is
// no printable character or one of \`$[]; start not aligned; a range that wraps), with
// nothing changed; with the areas below done: ErrNoBacking (EBADF) for an area of
// an object, ErrAgain where a split would make too many areas; ErrNoSpace (ENOMEM)
// where part of the range is a hole, with the rest done. ErrNoMemory for more names
// at a time than 65535; ErrClosed. Source: PR_SET_VMA(2const), mm/madvise.c.
func (as *AddressSpace) SetName(start addr.GVA, length uint64, name string) error {
	err := checkName(name)
	if err == nil {
		// Held until the areas have the number: who looks for numbers that no area has
		// any more must not find this one among them.
		names := &as.mem.names
		names.mu.Lock()
		defer names.mu.Unlock()
		var n uint16
		if n, err = names.number(as.mem, name); err == nil {
			err = as.labelAreas(start, length, vmarea.Flags(n)<<vmarea.NumberShift)
		}
	}
	return nameError(start, length, err)
}

// ClearName takes the names away, as the same call with a null pointer does.
//
// Errors: as SetName.
func (as *AddressSpace) ClearName(start addr.GVA, length uint64) error {
	return nameError(start, length, as.labelAreas(start, length, 0))
}

func nameError(start addr.GVA, length uint64, err error) error {
	if err == nil {
		return nil
	}
	return opError("set name", addr.Range{Start: start, End: start + addr.GVA(length)}, err)
}

// checkName checks a name.
func checkName(name string) error {
	if len(name) > MaxNameLength {
		return fmt.Errorf("a name of %d bytes: %w", len(name), ErrInvalid)
	}
	for i := range len(name) {
		if ch := name[i]; ch < ' ' || ch > '~' || strings.IndexByte("\\`$[]", ch) >= 0 {
			return fmt.Errorf("name %q: %w", name, ErrInvalid)
		}
	}
	return nil
}

// labelAreas gives the anonymous areas of a range the number in flags.
func (as *AddressSpace) labelAreas(start addr.GVA, length uint64, flags vmarea.Flags) error {
	r, err := checkAdvised(start, length, AdviceNormal)
	if err != nil || length == 0 {
		return err
	}
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := r, error(nil)
	at := r.Start
	var hole error
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		if a.Start > at && hole == nil {
			hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
		}
		if o, ok := a.Backing.(*Object); ok && !o.anonymous || !ok && a.Backing != nil {
			head.End, rest = max(a.Start, r.Start), fmt.Errorf("%v is not anonymous: %w", a, ErrNoBacking)
			return false
		}
		at = a.End
		return at < r.End
	})
	if hole == nil && rest == nil && at < r.End {
		hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
	}
	err = as.setFlags(c, head, flags, vmarea.NumberMask)
	c.publish()
	c.end()
	switch {
	case errors.Is(err, ErrNoSpace):
		return fmt.Errorf("%w: %v", ErrAgain, err)
	case rest != nil:
		return rest
	}
	return hole
}

// nameTable has a number for each name that an area of the memory may have. Numbers
// are used again once they have run out, for names that no area has any more.
type nameTable struct {
	mu      sync.Mutex        // above all change locks
	numbers map[string]uint16 // mu
	next    uint16            // the last that was given away; mu
	free    []uint16          // mu

	names sync.Map // number to name; written under mu
	any   atomic.Bool
}

// number returns the number of a name, which is none's but that.
//
// Preconditions: mu is held, and no change lock.
//
// Errors: ErrNoMemory.
func (t *nameTable) number(m *Memory, name string) (uint16, error) {
	if n, ok := t.numbers[name]; ok {
		return n, nil
	}
	var n uint16
	switch {
	case len(t.free) > 0 || t.next == maxNames && t.collect(m):
		n, t.free = t.free[len(t.free)-1], t.free[:len(t.free)-1]
	case t.next == maxNames:
		return 0, fmt.Errorf("%d names are in use: %w", maxNames, ErrNoMemory)
	default:
		t.next++
		n = t.next
	}
	if t.numbers == nil {
		t.numbers = make(map[string]uint16)
	}
	t.numbers[name] = n
	t.names.Store(n, name)
	t.any.Store(true)
	return n, nil
}

const maxNames = uint16(vmarea.NumberMask >> vmarea.NumberShift)

// collect frees the numbers that no area has, and reports whether there are any. All
// spaces are held still meanwhile, so that a fork hands no number on unseen.
func (t *nameTable) collect(m *Memory) bool {
	spaces, unlock := m.lockAll()
	defer unlock()
	used := make(map[uint16]struct{})
	for _, as := range spaces {
		as.tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
			used[numberOf(a)] = struct{}{}
			return true
		})
	}
	for name, n := range t.numbers {
		if _, is := used[n]; !is {
			delete(t.numbers, name)
			t.names.Delete(n)
			t.free = append(t.free, n)
		}
	}
	return len(t.free) > 0
}

func numberOf(a *vmarea.Area) uint16 {
	return uint16(a.Flags & vmarea.NumberMask >> vmarea.NumberShift)
}

// nameOf returns the name of an area, and false if it has none. Of one that was
// published before names were used again it may return another's.
func (t *nameTable) nameOf(a *vmarea.Area) (string, bool) {
	if !t.any.Load() || numberOf(a) == 0 {
		return "", false
	}
	name, ok := t.names.Load(numberOf(a))
	if !ok {
		return "", false
	}
	return name.(string), true
}
