//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Two vCPUs copy a private page's word to a shared page for ever, and leave the guest
// for nothing but faults and rollbacks. What they read after a rollback is what the
// snapshot has.
func TestR8RunningGuestsSeeARollback(t *testing.T) {
	const guests, rounds = 2, 15
	ctx := t.Context()
	m, p := newGuestMemory(t, 16<<20, PlatformOptions{MaxVCPUs: guests})
	as := newGuestSpace(t, m, 1, progCopy)
	const shared addr.GVA = 0x5000_0000
	if _, err := as.Map(ctx, guestmem.MapOptions{
		Addr: shared, Length: addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: guestmem.MapShared | guestmem.MapAnonymous | guestmem.MapFixed,
	}); err != nil {
		t.Fatal(err)
	}
	src := addr.GVA(dataAt(0))
	store := func(at addr.GVA, x uint64) {
		if err := as.Store64(ctx, at, x); err != nil {
			t.Fatal(err)
		}
	}
	store(src, 1)
	store(shared, 1)
	// Through a pin, so that nothing but the rollback makes the guests load a new root.
	pin, err := as.Pin(ctx, addr.Range{Start: shared, End: shared + addr.PageSize}, guestmem.Write)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	s, err := as.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close()
	defer s.Close()

	var over atomic.Bool
	var wg sync.WaitGroup
	var contexts [guests]*Context
	for i := range contexts {
		c := p.NewContext()
		c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: uint64(src), RSI: uint64(shared) + 8*uint64(i), RFLAGS: 0x202}
		contexts[i] = c
		wg.Go(func() {
			for !over.Load() {
				e, err := p.Run(ctx, as, c)
				if err == nil && e.Kind == ExitPageFault {
					err = as.Fault(ctx, e.Addr, e.Access)
				} else if err == nil && e.Kind != ExitKicked {
					err = fmt.Errorf("%v", e)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer func() {
		over.Store(true)
		for _, c := range contexts {
			c.Kick()
		}
		wg.Wait()
		for _, c := range contexts {
			c.Close()
		}
	}()
	// read has each guest read anew, and returns what it has read.
	read := func() (out [guests]uint64) {
		for i := range out {
			at := pin.Frames()[0].GPA() + 8*addr.GPA(i)
			var word [8]byte
			for range 2 { // the first may have been read before
				clear(word[:])
				if _, err := m.WriteAt(word[:], at); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the guest copies", func() bool {
					_, err := m.ReadAt(word[:], at)
					out[i] = binary.LittleEndian.Uint64(word[:])
					return err == nil && out[i] != 0
				})
			}
		}
		return out
	}
	for round := range uint64(rounds) {
		store(src, 100+round)
		if got, want := read(), [guests]uint64{100 + round, 100 + round}; got != want {
			t.Fatalf("round %d: the guests read %v before the rollback, want %v", round, got, want)
		}
		if err := as.Rollback(ctx, s); err != nil {
			t.Fatal(err)
		}
		if got, want := read(), [guests]uint64{1, 1}; got != want {
			t.Fatalf("round %d: the guests read %v after the rollback, want %v", round, got, want)
		}
	}
}
