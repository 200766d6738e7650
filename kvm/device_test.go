//go:build linux && amd64

package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// Guests reach what they map of a device in another region, also one that was added
// later, next to the pool, where the spare slot was; and no longer where it was taken
// away, made read-only or unmapped under a translation that the vCPU has.
func TestR8GuestReachesADevice(t *testing.T) {
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{})
	as := newGuestSpace(t, m, 4, progRead, progWrite)
	defer as.Close()
	pool := m.Region()
	for _, o := range []guestmem.RegionOptions{
		{Base: 4 << 30, Size: 16 << 12},
		{Base: pool.End(), Size: 16 << 12},
		{Base: pool.End() + 16<<12, Size: 16 << 12, Backing: guestmem.BackingAnonymous},
	} {
		r, err := m.AddRegion(o)
		if err != nil {
			t.Fatal(err)
		}
		guestReaches(t, m, p, as, r)
		if err := m.RemoveRegion(r); err != nil {
			t.Fatal(err)
		}
	}
}

func guestReaches(t *testing.T, m *guestmem.Memory, p *Platform, as *guestmem.AddressSpace, r *guestmem.Region) {
	t.Helper()
	o, err := m.NewDeviceObject(r.Base()+4<<12, 4<<12, "card")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	at := mapPages(t, as, o, 4)
	c := p.NewContext()
	defer c.Close()
	store := func(as *guestmem.AddressSpace, at addr.GVA, x uint64) {
		t.Helper()
		c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: x}
		untilSyscall(t, p, as, c)
	}
	load := func(as *guestmem.AddressSpace, at addr.GVA, want uint64) {
		t.Helper()
		c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: uint64(at)}
		if untilSyscall(t, p, as, c); c.Regs.RAX != want {
			t.Fatalf("the guest reads %d, want %d", c.Regs.RAX, want)
		}
	}
	refused := func(at addr.GVA, want error) {
		t.Helper()
		c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: 1000}
		e, err := p.Run(t.Context(), as, c)
		if err != nil || e.Kind != ExitPageFault || e.Addr != at {
			t.Fatalf("%v, %v", e, err)
		}
		if err := as.Fault(t.Context(), e.Addr, e.Access); !errors.Is(err, want) {
			t.Fatalf("Fault = %v", err)
		}
	}
	for i := range uint64(5) {
		store(as, at+8, 7+i)
		if v, err := m.Load64(r.Base() + 4<<12 + 8); v != 7+i || err != nil {
			t.Fatalf("Go reads %d, %v", v, err)
		}
		if v, err := as.Load64(t.Context(), at+8); v != 7+i || err != nil {
			t.Fatalf("Go reads %d, %v, at the guest's address", v, err)
		}
		child, err := as.Fork()
		if err != nil {
			t.Fatal(err)
		}
		store(child, at+16, 100+i)
		load(as, at+16, 100+i)
		store(as, at+16, 200+i)
		load(child, at+16, 200+i)
		if err := child.Close(); err != nil {
			t.Fatal(err)
		}
		if err := as.Protect(at, 1<<12, guestmem.ProtRead); err != nil {
			t.Fatal(err)
		}
		refused(at+8, guestmem.ErrAccess)
		load(as, at+8, 7+i)
		if err := as.Protect(at, 1<<12, guestmem.ProtRead|guestmem.ProtWrite); err != nil {
			t.Fatal(err)
		}
		store(as, at+8, 0)
		to, err := as.Remap(t.Context(), guestmem.RemapOptions{
			Addr: at, OldLength: 4 << 12, NewLength: 4 << 12, NewAddr: at - 1<<30, Flags: guestmem.RemapMayMove | guestmem.RemapFixed,
		})
		if err != nil {
			t.Fatal(err)
		}
		refused(at+8, guestmem.ErrNotMapped)
		load(as, to+16, 200+i)
		at = to
		if err := m.RemoveRegion(r); !errors.Is(err, guestmem.ErrBusy) {
			t.Fatalf("RemoveRegion = %v", err)
		}
	}
	if err := as.Unmap(at, 4<<12); err != nil {
		t.Fatal(err)
	}
	refused(at, guestmem.ErrNotMapped)
}

// A vCPU that touches a page of a file of the host that somebody has cut off is told of
// it by name, and harms nobody else (R12).
func TestR12GuestTouchesWhatWasCut(t *testing.T) {
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{})
	as := newGuestSpace(t, m, 4, progRead, progWrite)
	defer as.Close()
	f, err := os.Create(filepath.Join(t.TempDir(), "cut"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 << 12); err != nil {
		t.Fatal(err)
	}
	o, err := m.NewHostObject(f, "cut")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	at := mapPages(t, as, o, 4)
	c := p.NewContext()
	defer c.Close()
	c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at + 3<<12), RAX: 7}
	untilSyscall(t, p, as, c)
	if err := f.Truncate(1 << 12); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		c.Regs = Regs{RIP: uint64(codeAt(i)), RDI: uint64(at + 3<<12), RAX: 8}
		if e, err := p.Run(t.Context(), as, c); !errors.Is(err, guestmem.ErrBus) || !errors.Is(err, unix.EFAULT) {
			t.Fatalf("Run = %v, %v", e, err)
		}
	}
	c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: 9}
	untilSyscall(t, p, as, c)
	if v, err := as.Load64(t.Context(), at); v != 9 || err != nil {
		t.Errorf("Go reads %d, %v", v, err)
	}
}

// mapPages maps the first pages of an object, shared and writable.
func mapPages(t *testing.T, as *guestmem.AddressSpace, o *guestmem.Object, pages uint64) addr.GVA {
	t.Helper()
	at, err := as.Map(t.Context(), guestmem.MapOptions{
		Length: pages << 12, Prot: guestmem.ProtRead | guestmem.ProtWrite, Flags: guestmem.MapShared, Object: o,
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}
