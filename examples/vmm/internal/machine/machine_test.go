//go:build linux && amd64

package machine

import (
	"context"
	"testing"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

func TestMain(m *testing.M) { testutil.Main(m) }

const testSeed = 7

// newGuest makes a guest that has filled its memory.
func newGuest(t *testing.T, dirty kvm.DirtyMode) (*kvm.System, *Guest) {
	t.Helper()
	testutil.RequireKVM(t)
	sys, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := NewLayout(MinMemory, 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(sys, l, dirty, testSeed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, cmd := range []guest.Command{guest.Nop, guest.Fill} {
		if err := g.Do(context.Background(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	return sys, g
}

// found has the guest look at everything, and returns how many errors are new.
func found(t *testing.T, g *Guest) (n uint64, first string) {
	t.Helper()
	before, err := g.SelfChecked()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Do(context.Background(), guest.Verify); err != nil {
		t.Fatal(err)
	}
	after, err := g.SelfChecked()
	if err != nil {
		t.Fatal(err)
	}
	if after.Checked == before.Checked {
		t.Fatal("the guest looked at no page")
	}
	return after.Errors - before.Errors, after.First
}

// TestGuestFindsWrongPages has the guest find each way in which a page can be not
// the one that it wrote last.
func TestGuestFindsWrongPages(t *testing.T) {
	_, g := newGuest(t, kvm.DirtyNone)
	if n, first := found(t, g); n != 0 {
		t.Fatalf("%d errors in a guest that nobody has touched: %s", n, first)
	}
	const page = 5
	at := g.Data.Base + page*addr.PageSize
	good := make([]byte, addr.PageSize)
	if _, err := g.Memory.ReadAt(good, at); err != nil {
		t.Fatal(err)
	}
	number := uint64(at) / addr.PageSize
	other := func(page, gen, writer, seed uint64) []byte {
		b := make([]byte, addr.PageSize)
		guest.FillPage(b, page, gen, writer, seed)
		return b
	}
	if string(good) != string(other(number, 1, 0, testSeed)) {
		t.Fatal("the page is not what FillPage makes of it")
	}
	torn := append([]byte(nil), good...)
	torn[len(torn)-1] ^= 1
	for name, b := range map[string][]byte{
		"lost":               make([]byte, addr.PageSize),
		"stale":              other(number, 0, 0, testSeed),
		"of another page":    other(number+1, 1, 0, testSeed),
		"of another vCPU":    other(number, 1, 1, testSeed),
		"of another guest":   other(number, 1, 0, testSeed+1),
		"torn, the last bit": torn,
	} {
		if _, err := g.Memory.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		if n, _ := found(t, g); n != 1 {
			t.Errorf("a page that is %s: the guest finds %d errors, want 1", name, n)
		}
	}
	if _, err := g.Memory.WriteAt(good, at); err != nil {
		t.Fatal(err)
	}
	if n, first := found(t, g); n != 0 {
		t.Errorf("%d errors with the page put back: %s", n, first)
	}
	if n, err := g.CompareTables(); n != 0 || err != nil {
		t.Errorf("%d pages differ from the model, %v", n, err)
	}
	// Both the page and what the guest has noted go back: only the ledgers know.
	if err := g.Memory.Store64(g.Data.Table+8*page, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := g.CompareTables(); n != 1 || err != nil {
		t.Errorf("%d pages differ from the model, want 1, %v", n, err)
	}
}

// TestClonesAreSeparate runs two clones of a template: each finds
// its own pages, and the other's are not there.
func TestClonesAreSeparate(t *testing.T) {
	ctx := context.Background()
	sys, g := newGuest(t, kvm.DirtyNone)
	for id := range 2 {
		if err := g.Tell(id, guest.Nop); err != nil {
			t.Fatal(err)
		}
	}
	s, err := g.Seal()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var clones []*Guest
	for i := range uint64(2) {
		c, err := s.Clone(sys, kvm.DirtyNone, func(m *guestmem.Memory) error { return Reseed(m, 100+i) })
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s.Follow(c)
		if err := c.Do(ctx, guest.Fill, SharedArea+1); err != nil {
			t.Fatal(err)
		}
		clones = append(clones, c)
	}
	for i, c := range clones {
		if n, first := found(t, c); n != 0 {
			t.Errorf("clone %d: %d errors: %s", i, n, first)
		}
		w, err := c.Memory.Load64(c.Shared.Base + 3*8) // its seed
		if err != nil || w != 100+uint64(i) {
			t.Errorf("clone %d: seed %d in its page, %v", i, w, err)
		}
	}
}

func TestLayouts(t *testing.T) {
	for _, memory := range []uint64{MinMemory, 64 * mib, 256 * mib, 3 * gib, 5*gib + addr.PageSize, MaxMemory} {
		l, err := NewLayout(memory, memory/16&^(2*mib-1)+2*mib)
		if err != nil {
			t.Errorf("%d bytes: %v", memory, err)
			continue
		}
		size := func(a guest.Area) uint64 { return a.Pages * addr.PageSize }
		if sum := l.LowSize + size(l.Data) + size(l.Shared) + romPages*addr.PageSize; sum != memory {
			t.Errorf("%d bytes: the regions have %d", memory, sum)
		}
		if end := uint64(l.Hot.Table) + 8*l.Hot.Pages; end > l.LowSize || uint64(l.Shared.Table) > l.LowSize {
			t.Errorf("%d bytes: tables go up to %#x, the low region to %#x", memory, end, l.LowSize)
		}
		if locks := uint64(guest.LocksBase) + 4*l.Shared.Pages; locks > uint64(guest.LedgerBase) {
			t.Errorf("%d bytes: locks go up to %#x", memory, locks)
		}
	}
	for _, memory := range []uint64{0, 4096, MinMemory - 4096, MinMemory + 1, MaxMemory + 4096, 1 << 63} {
		if _, err := NewLayout(memory, 2*mib); err == nil {
			t.Errorf("%d bytes are a layout", memory)
		}
	}
}
