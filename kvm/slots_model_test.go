//go:build linux

package kvm

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fakeKVM sets slots as the kernel does, and fails at the calls that it is told.
type fakeKVM struct {
	slots  map[uint32]guestmem.Slot
	limit  int
	calls  int
	failAt map[int]bool
	paused int
	// missing is called after each call with the slots as they are then.
	after func()
}

var errInjected = errors.New("injected")

func (k *fakeKVM) Pause()  { k.paused++ }
func (k *fakeKVM) Resume() { k.paused-- }

func (k *fakeKVM) SetSlot(s guestmem.Slot) error {
	k.calls++
	if k.failAt[k.calls] {
		return errInjected
	}
	old, exists := k.slots[s.ID]
	switch {
	case int(s.ID) >= k.limit:
		return unix.EINVAL
	case s.Size == 0 && !exists:
		return unix.EINVAL
	case s.Size == 0:
		delete(k.slots, s.ID)
	case exists && (old.Base != s.Base || old.Size != s.Size || old.HVA != s.HVA || old.ReadOnly != s.ReadOnly):
		return unix.EINVAL
	default:
		for id, o := range k.slots {
			if id != s.ID && s.Base < o.Base+addr.GPA(o.Size) && o.Base < s.Base+addr.GPA(s.Size) {
				return unix.EEXIST
			}
		}
		k.slots[s.ID] = s
	}
	if k.after != nil {
		k.after()
	}
	return nil
}

// flatPage is what a page is to a vCPU, whatever slots there are.
type flatPage struct {
	hva      addr.HVA
	readOnly bool
}

func pagesOf(slots []guestmem.Slot) map[addr.GPA]flatPage {
	pages := make(map[addr.GPA]flatPage)
	for _, s := range slots {
		for off := uint64(0); off < s.Size; off += addr.PageSize {
			pages[s.Base+addr.GPA(off)] = flatPage{s.HVA + addr.HVA(off), s.ReadOnly}
		}
	}
	return pages
}

func slotsOf(k *fakeKVM) []guestmem.Slot {
	var out []guestmem.Slot
	for _, s := range k.slots {
		out = append(out, s)
	}
	return out
}

// fewestSlots is the naive count: a boundary wherever something changes between
// neighbouring pages.
func fewestSlots(pages map[addr.GPA]flatPage) int {
	n := 0
	for gpa, p := range pages {
		before, ok := pages[gpa-addr.PageSize]
		if !ok || before.hva+addr.PageSize != p.hva || before.readOnly != p.readOnly {
			n++
		}
	}
	return n
}

// TestSlotsFollowRegions changes regions at random, with neighbours that may share a
// slot, on a KVM that fails now and then: after each update the slots are the
// regions' or the former ones, and while vCPUs run no page that stays is ever missing.
func TestSlotsFollowRegions(t *testing.T) {
	const nPlaces, limit = 12, 5
	rapid.Check(t, func(t *rapid.T) {
		k := &fakeKVM{slots: map[uint32]guestmem.Slot{}, limit: limit, failAt: map[int]bool{}}
		o := SlotTableOptions{}
		if mode := rapid.SampledFrom([]string{"pauser", "bare", "always"}).Draw(t, "mode"); mode == "pauser" {
			o.Pauser = k
		} else if mode == "always" {
			o.Coalesce = CoalesceAlways
		}
		o.Dirty = rapid.SampledFrom([]SlotDirty{SlotDirtyOff, SlotDirtyOn}).Draw(t, "dirty")
		table := NewSlotTable(k, limit, o)
		regions := map[addr.GPA]guestmem.Slot{}
		list := func() (out []guestmem.Slot) {
			for _, r := range regions {
				out = append(out, r)
			}
			return out
		}
		var stays map[addr.GPA]flatPage
		k.after = func() {
			if k.paused > 0 || o.Coalesce == CoalesceAlways {
				return
			}
			now := pagesOf(slotsOf(k))
			for gpa, p := range stays {
				if now[gpa] != p {
					t.Fatalf("page %v is %+v in the middle of an update, %+v before and after", gpa, now[gpa], p)
				}
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			former := pagesOf(list())
			formerRegions := map[addr.GPA]guestmem.Slot{}
			for g, r := range regions {
				formerRegions[g] = r
			}
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				place := rapid.IntRange(0, nPlaces-1).Draw(t, "place")
				gpa := addr.GPA(place * 2 * addr.PageSize)
				if _, is := regions[gpa]; is {
					delete(regions, gpa)
					continue
				}
				// Two possible mappings, each in step with addresses.
				regions[gpa] = guestmem.Slot{
					Base: gpa, Size: 2 * addr.PageSize,
					HVA:      addr.HVA(0x100000*rapid.IntRange(1, 2).Draw(t, "mapping")) + addr.HVA(gpa),
					ReadOnly: rapid.IntRange(0, 5).Draw(t, "ro") == 0,
				}
			}
			wanted := pagesOf(list())
			stays = map[addr.GPA]flatPage{}
			for gpa, p := range wanted {
				if former[gpa] == p {
					stays[gpa] = p
				}
			}
			k.failAt = map[int]bool{}
			if rapid.IntRange(0, 3).Draw(t, "fail") == 0 {
				k.failAt[k.calls+rapid.IntRange(1, 6).Draw(t, "call")] = true
			}
			before := maxID(k)
			err := table.update(list())
			if k.paused != 0 {
				t.Fatal("the vCPUs stay paused")
			}
			need := len(regions)
			if o.Pauser != nil || o.Coalesce == CoalesceAlways {
				need = fewestSlots(wanted)
			}
			switch {
			case need > limit:
				if !errors.Is(err, ErrTooManySlots) {
					t.Fatalf("%d slots of %d: %v", need, limit, err)
				}
			case err != nil && !errors.Is(err, errInjected):
				t.Fatalf("update = %v", err)
			}
			if err != nil {
				regions, wanted = formerRegions, former
			} else if len(k.slots) != need {
				t.Fatalf("%d slots, want %d", len(k.slots), need)
			}
			if d := cmp.Diff(wanted, pagesOf(slotsOf(k)), cmp.AllowUnexported(flatPage{})); d != "" {
				t.Fatalf("after %v:\n%s", err, d)
			}
			if d := cmp.Diff(k.slots, table.set); d != "" {
				t.Fatalf("what the table thinks:\n%s", d)
			}
			for id, s := range k.slots {
				if s.ID != id || s.DirtyLog != (o.Dirty == SlotDirtyOn && !s.ReadOnly) {
					t.Fatalf("slot %d: %+v", id, s)
				}
			}
			if now := maxID(k); now > before && now >= len(k.slots) && err == nil && now > maxOf(before, len(k.slots)-1) {
				t.Fatalf("id %d is used with %d slots: ids that came free were not", now, len(k.slots))
			}
		}
	})
}

func maxID(k *fakeKVM) int {
	m := -1
	for id := range k.slots {
		m = max(m, int(id))
	}
	return m
}

func maxOf(a, b int) int { return max(a, b) }

// TestLostSlotsAreSaidAndHealed fails an update and its way back, at every pair of
// calls: the error says so, the table knows what is left, and the next update puts all
// right.
func TestLostSlotsAreSaidAndHealed(t *testing.T) {
	part := func(i int) guestmem.Slot {
		return guestmem.Slot{Base: addr.GPA(i) << 12, Size: 4096, HVA: addr.HVA(0x100000 + i<<12)}
	}
	from := []guestmem.Slot{part(0), part(1), part(2), part(4)}
	to := []guestmem.Slot{part(0), part(2), part(5), part(6)}
	lost := 0
	for first := 1; first <= 8; first++ {
		for second := first + 1; second <= 12; second++ {
			t.Run(fmt.Sprint(first, second), func(t *testing.T) {
				k := &fakeKVM{slots: map[uint32]guestmem.Slot{}, limit: 10}
				table := NewSlotTable(k, 10, SlotTableOptions{Pauser: k})
				if err := table.update(from); err != nil {
					t.Fatal(err)
				}
				k.failAt = map[int]bool{k.calls + first: true, k.calls + second: true}
				err := table.update(to)
				if d := cmp.Diff(k.slots, table.set); d != "" {
					t.Errorf("what the table thinks:\n%s", d)
				}
				want := pagesOf(from)
				switch {
				case err == nil:
					want = pagesOf(to)
				case errors.Is(err, ErrSlotsLost):
					lost++
					want = nil
				}
				if want != nil && !cmp.Equal(want, pagesOf(slotsOf(k)), cmp.AllowUnexported(flatPage{})) {
					t.Errorf("%v, and slots %v", err, slotsOf(k))
				}
				k.failAt = nil
				if err := table.update(to); err != nil || !cmp.Equal(pagesOf(to), pagesOf(slotsOf(k)), cmp.AllowUnexported(flatPage{})) {
					t.Errorf("the next update: %v, %v", err, slotsOf(k))
				}
				if k.paused != 0 {
					t.Error("the vCPUs stay paused")
				}
			})
		}
	}
	if lost == 0 {
		t.Error("no pair of failures hit the way back")
	}
}

func TestTooManySlotsNamesBothNumbers(t *testing.T) {
	k := &fakeKVM{slots: map[uint32]guestmem.Slot{}, limit: 3}
	table := NewSlotTable(k, 3, SlotTableOptions{})
	var parts []guestmem.Slot
	for i := range 4 {
		parts = append(parts, guestmem.Slot{Base: addr.GPA(i) << 20, Size: 4096, HVA: addr.HVA(0x100000 + i<<12)})
	}
	err := table.update(parts)
	if want := "kvm: update slots: more memory slots than the VM has: 4 regions need 4 slots, there are 3"; !errors.Is(err, ErrTooManySlots) || err.Error() != want {
		t.Errorf("update = %v", err)
	}
	if k.calls != 0 {
		t.Errorf("%d calls", k.calls)
	}
}

func TestHugeRegionTakesSeveralSlots(t *testing.T) {
	k := &fakeKVM{slots: map[uint32]guestmem.Slot{}, limit: 8}
	table := NewSlotTable(k, 8, SlotTableOptions{Pauser: k, FirstID: 2})
	if err := table.update([]guestmem.Slot{{Base: 1 << 20, Size: maxSlotSize*2 + 4096, HVA: 1 << 30}}); err != nil {
		t.Fatal(err)
	}
	got := table.Slots()
	want := []guestmem.Slot{
		{ID: 2, Base: 1 << 20, Size: maxSlotSize, HVA: 1 << 30},
		{ID: 3, Base: 1<<20 + maxSlotSize, Size: maxSlotSize, HVA: 1<<30 + maxSlotSize},
		{ID: 4, Base: 1<<20 + 2*maxSlotSize, Size: 4096, HVA: 1<<30 + 2*maxSlotSize},
	}
	if !slices.Equal(got, want) {
		t.Errorf("slots %+v", got)
	}
}
