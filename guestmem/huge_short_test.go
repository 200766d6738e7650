package guestmem

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// With every frame used up, what would split a leaf of 2 MiB is ErrNoMemory, leaves
// it as it was, and comes to an end; and goes on once there are frames.
func TestHugeLeafIsNotSplitWithoutFrames(t *testing.T) {
	m, as := hugeMemory(t, 8<<20, HugeLeavesAdvised)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustDo(t, as.Advise(ctx, hugeAddr, hugeLen, AdviceHugePage))
	mustWrite(t, as, hugeAddr+7*page, []byte("here"))
	child := mustFork(t, as)
	filler := newSpace(t, m)
	mapAt(t, filler, 0x10000000, 16<<20, rw)
	full := func() {
		for gva := addr.GVA(0x10000000); ; gva += page {
			if err := filler.Fault(ctx, gva, Write); errors.Is(err, ErrNoMemory) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	full()
	before := m.Stats()
	for _, s := range []*AddressSpace{as, child} {
		_, pinErr := s.Pin(ctx, addr.Range{Start: hugeAddr, End: hugeAddr + page}, Write)
		_, writeErr := s.WriteAt(ctx, []byte("x"), hugeAddr+7*page)
		_, remapErr := s.Remap(ctx, RemapOptions{Addr: hugeAddr, OldLength: hugeLen, NewLength: hugeLen, Flags: RemapMayMove | RemapFixed, NewAddr: hugeAddr + 16*addr.GVA(hugeLen)})
		for what, err := range map[string]error{
			"write": writeErr, "pin": pinErr, "remap": remapErr,
			"discard": s.Discard(hugeAddr+page, page), "unmap": s.Unmap(hugeAddr+page, page),
			"protect":  s.Protect(hugeAddr+page, page, ProtRead),
			"guard":    s.Advise(ctx, hugeAddr+page, page, AdviceGuardInstall),
			"populate": s.Advise(ctx, hugeAddr+page, page, AdvicePopulateWrite),
		} {
			if !errors.Is(err, ErrNoMemory) {
				t.Errorf("%s: %v", what, err)
			}
		}
		mustSee(t, s, hugeAddr+7*page, []byte("here"))
		mustCheck(t, m)
	}
	if after := m.Stats(); after.HugeLeaves != before.HugeLeaves || after.HugeSplit != before.HugeSplit || after.Tables != before.Tables {
		t.Errorf("%+v, was %+v", after, before)
	}
	mustDo(t, filler.Close())
	mustWrite(t, child, hugeAddr+7*page, []byte("more"))
	mustSee(t, as, hugeAddr+7*page, []byte("here"))
	// All of it is to be had again, in blocks.
	mustDo(t, as.Close())
	mustDo(t, child.Close())
	again, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: HugeLeavesAlways})
	mustDo(t, err)
	mapAt(t, again, hugeAddr, 3*hugeLen, rw)
	for i := range addr.GVA(3) {
		mustWrite(t, again, hugeAddr+i*addr.GVA(hugeLen), []byte{1})
	}
	if s := m.Stats(); s.HugeLeaves < 2 { // tables may lie in the third
		t.Errorf("blocks were lost: %+v", s)
	}
}
