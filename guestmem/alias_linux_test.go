package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// The alias is another mapping of the same pages as the slot, where there is one.
func TestAliasIsTheSlotsMemory(t *testing.T) {
	m := newPhys(t)
	shared := mustAdd(t, m, RegionOptions{Size: 4 * page})
	once := mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: 4 * page, Backing: BackingAnonymous})
	if at, ok := once.Alias(); ok || at != 0 {
		t.Errorf("memory that is mapped once has an alias at %v", at)
	}
	alias, ok := shared.Alias()
	if !ok || alias == shared.Slot() {
		t.Fatalf("slot at %v, alias at %v, %v", shared.Slot(), alias, ok)
	}
	mustDo(t, testutil.Store(uint64(shared.Slot())+page+5, []byte("a vCPU's")))
	got := make([]byte, 8)
	mustDo(t, testutil.Load(uint64(alias)+page+5, got))
	if string(got) != "a vCPU's" {
		t.Errorf("the alias has %q", got)
	}
}
