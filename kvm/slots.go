package kvm

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Coalescing says which regions share a memory slot.
type Coalescing uint8

const (
	// CoalesceAuto: neighbours, if the table can pause the vCPUs for the time
	// that a slot of several regions is replaced, and else none.
	CoalesceAuto Coalescing = iota
	// CoalesceNever: one slot for each region.
	CoalesceNever
	// CoalesceAlways: neighbours, even without a Pauser. The embedder keeps vCPUs
	// out of the guest while regions change.
	CoalesceAlways
)

// SlotDirty says whether slots log the guest's writes.
type SlotDirty uint8

const (
	SlotDirtyOff SlotDirty = iota
	SlotDirtyOn            // all but read-only slots
)

// Pauser keeps vCPUs out of the guest between Pause and Resume; a VM is one.
// Pause returns when they are out. Both nest.
type Pauser interface {
	Pause()
	Resume()
}

// SlotTableOptions say how a SlotTable lays slots out.
type SlotTableOptions struct {
	// FirstID is the lowest slot id that is the table's; the ids below are the
	// embedder's own.
	FirstID uint32
	// Pauser stops the vCPUs while a slot is replaced by others over the same
	// memory. nil: see Coalesce.
	Pauser   Pauser
	Coalesce Coalescing
	Dirty    SlotDirty
}

// SlotTable keeps memory slots equal to the regions of a Memory. It is a
// guestmem.RegionListener, over any guestmem.SlotSetter: a VM of this package
// has one, and over the descriptor of an embedder's own VM it is
//
//	table := kvm.NewSlotTable(kvm.VMSlots(fd), limit, kvm.SlotTableOptions{Pauser: p})
//	err := memory.AttachListener(table)
//
// Slots are a function of the regions: neighbours whose guest-physical and host
// addresses both go on, with the same flags, are one slot. A slot that an update
// leaves as it is is not touched; deletions come before creations; a flag that
// the kernel can change in place is. Ids that come free are used again, lowest first.
//
// A vCPU that runs on memory that stays never sees it missing. A slot that is
// split or grows has to be deleted and created again, and between the two its memory
// would be a hole, so vCPUs are paused meanwhile; without a Pauser regions keep
// slots of their own, which never need that. Regions that only come or go stop
// nobody; a VM that tracks dirty pages pauses its vCPUs all the same for one that goes.
// A change of slots waits in the kernel for vCPUs whose access the host's fault handler
// (a userfaultfd) has not resolved yet.
//
// Safe for concurrent use.
type SlotTable struct {
	setter guestmem.SlotSetter
	limit  int // immutable
	o      SlotTableOptions
	kindOf func(addr.HVA) int // what must be equal in one slot; nil: nothing else

	mu  sync.Mutex
	set map[uint32]guestmem.Slot // what the VM has, by id; mu
}

// The most that the table puts into one slot: KVM's own limit is 2^31-1 pages.
const maxSlotSize = 1 << 42

// NewSlotTable returns a table that sets at most limit slots by setter; 0: as
// many as KVM ever has (32764).
func NewSlotTable(setter guestmem.SlotSetter, limit int, o SlotTableOptions) *SlotTable {
	if limit <= 0 {
		limit = 32764
	}
	return &SlotTable{setter: setter, limit: limit, o: o, set: make(map[uint32]guestmem.Slot)}
}

// UpdateRegions implements guestmem.RegionListener: afterwards the slots are
// those of the regions.
//
// Errors, with the slots as they were before: ErrTooManySlots with both
// numbers; what the setter answers. With ErrSlotsLost the former slots could not
// be put back either; the next update starts from what there is.
func (t *SlotTable) UpdateRegions(regions []*guestmem.Region) error {
	parts := make([]guestmem.Slot, len(regions))
	for i, r := range regions {
		parts[i] = guestmem.Slot{Base: r.Base(), Size: r.Size(), HVA: r.Slot(), ReadOnly: r.ReadOnly()}
	}
	return t.update(parts)
}

// Slots returns the slots that are set, by address.
func (t *SlotTable) Slots() []guestmem.Slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]guestmem.Slot, 0, len(t.set))
	for _, s := range t.set {
		out = append(out, s)
	}
	slices.SortFunc(out, byBase)
	return out
}

// Clear deletes every slot, for who takes the VM's memory down and not the VM.
func (t *SlotTable) Clear() error { return t.update(nil) }

func byBase(a, b guestmem.Slot) int {
	if a.Base < b.Base {
		return -1
	}
	return 1
}

// update makes the slots those of the parts.
func (t *SlotTable) update(parts []guestmem.Slot) error {
	wanted := t.layOut(parts)
	if len(wanted) > t.limit {
		return opError("update slots", fmt.Errorf("%w: %d regions need %d slots, there are %d", ErrTooManySlots, len(parts), len(wanted), t.limit))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	steps := t.plan(wanted)
	if replaces(steps) && t.o.Pauser != nil {
		t.o.Pauser.Pause()
		defer t.o.Pauser.Resume()
	}
	for i, s := range steps {
		if err := t.do(s.to); err != nil {
			return opError("update slots", t.undo(steps[:i], err))
		}
	}
	return nil
}

// layOut returns the slots that the parts want, without ids.
func (t *SlotTable) layOut(parts []guestmem.Slot) []guestmem.Slot {
	parts = slices.Clone(parts)
	slices.SortFunc(parts, byBase)
	join := t.o.Coalesce == CoalesceAlways || t.o.Coalesce == CoalesceAuto && t.o.Pauser != nil
	var out []guestmem.Slot
	for _, p := range parts {
		p.ID, p.DirtyLog = 0, t.o.Dirty == SlotDirtyOn && !p.ReadOnly
		if n := len(out); join && n > 0 && t.goesOn(out[n-1], p) {
			out[n-1].Size += p.Size
			continue
		}
		for p.Size > maxSlotSize {
			first := p
			first.Size = maxSlotSize
			out = append(out, first)
			p.Base, p.HVA, p.Size = p.Base+maxSlotSize, p.HVA+maxSlotSize, p.Size-maxSlotSize
		}
		out = append(out, p)
	}
	return out
}

// goesOn reports whether p can be the end of the slot s.
func (t *SlotTable) goesOn(s, p guestmem.Slot) bool {
	return s.Base+addr.GPA(s.Size) == p.Base && s.HVA+addr.HVA(s.Size) == p.HVA &&
		s.ReadOnly == p.ReadOnly && s.DirtyLog == p.DirtyLog && s.Size+p.Size <= maxSlotSize &&
		(t.kindOf == nil || t.kindOf(s.HVA) == t.kindOf(p.HVA))
}

// slotStep takes a slot from one state to another. Size 0: it does not exist.
type slotStep struct{ from, to guestmem.Slot }

// plan lists the steps from what is set to what is wanted: deletions, then flags
// in place, then creations.
func (t *SlotTable) plan(wanted []guestmem.Slot) []slotStep {
	byAddress := make(map[addr.GPA]guestmem.Slot, len(t.set))
	for _, s := range t.set {
		byAddress[s.Base] = s
	}
	var flags, creations []slotStep
	stays := make(map[uint32]bool, len(t.set))
	for _, w := range wanted {
		have, ok := byAddress[w.Base]
		if !ok || have.Size != w.Size || have.HVA != w.HVA || have.ReadOnly != w.ReadOnly {
			creations = append(creations, slotStep{to: w})
			continue
		}
		stays[have.ID] = true
		if w.ID = have.ID; have != w {
			flags = append(flags, slotStep{have, w})
		}
	}
	var steps []slotStep
	for id, s := range t.set {
		if !stays[id] {
			steps = append(steps, slotStep{s, guestmem.Slot{ID: id, Base: s.Base, HVA: s.HVA}})
		}
	}
	slices.SortFunc(steps, func(a, b slotStep) int { return byBase(a.from, b.from) })
	id := t.o.FirstID
	for i := range creations {
		for stays[id] {
			id++
		}
		to := &creations[i].to
		to.ID = id
		creations[i].from = guestmem.Slot{ID: id, Base: to.Base, HVA: to.HVA}
		id++
	}
	return append(append(steps, flags...), creations...)
}

// replaces reports whether some address loses its slot and gets another.
func replaces(steps []slotStep) bool {
	for _, d := range steps {
		if d.from.Size == 0 || d.to.Size != 0 {
			continue
		}
		for _, c := range steps {
			if c.from.Size == 0 && c.to.Base < d.from.Base+addr.GPA(d.from.Size) && d.from.Base < c.to.Base+addr.GPA(c.to.Size) {
				return true
			}
		}
	}
	return false
}

// do makes a slot what s says, and notes it.
func (t *SlotTable) do(s guestmem.Slot) error {
	if err := t.setter.SetSlot(s); err != nil {
		return err
	}
	if s.Size == 0 {
		delete(t.set, s.ID)
	} else {
		t.set[s.ID] = s
	}
	return nil
}

// undo takes back the steps that were done before one failed with cause. It
// goes on after a failure of its own, so as to put back what it can.
func (t *SlotTable) undo(done []slotStep, cause error) error {
	var errs []error
	for _, s := range slices.Backward(done) {
		if err := t.do(s.from); err != nil {
			errs = append(errs, fmt.Errorf("slot %d [%v, %#x): %w", s.from.ID, s.from.Base, uint64(s.from.Base)+s.from.Size, err))
		}
	}
	if len(errs) == 0 {
		return cause
	}
	return fmt.Errorf("%w; and %w: %w", cause, ErrSlotsLost, errors.Join(errs...))
}
