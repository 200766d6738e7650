//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/familytest"
	"github.com/guestmm/guestmm/internal/invariants"
)

// progHash hashes RCX words from RDI on into RAX, and exits.
var progHash = program{`
	xor %eax, %eax
	1: rol $7, %rax
	add (%rdi), %rax
	add $8, %rdi
	loop 1b
	syscall
	ud2
`, "\x31\xc0\x48\xc1\xc0\x07\x48\x03\x07\x48\x83\xc7\x08\xe2\xf3\x0f\x05\x0f\x0b"}

func TestHashProgramBytesMatchTheirSource(t *testing.T) {
	if want := assemble(t, progHash.source); !bytes.Equal(progHash.bytes(), want) {
		t.Errorf("bytes %x, source %x", progHash.code, want)
	}
}

// hashOf is what progHash makes of some words.
func hashOf(p []byte) (h uint64) {
	for ; len(p) > 0; p = p[8:] {
		h = bits.RotateLeft64(h, 7) + binary.LittleEndian.Uint64(p)
	}
	return h
}

// A family of up to 200 address spaces through random forks, writes, layout
// changes, pins, snapshots, rollbacks and exits: what guests read in them, on two
// vCPUs at a time, is what naive copies have.
func TestR8GuestsReadAFamilyOf200(t *testing.T) {
	ops, seeds := 4000, uint64(1)
	if invariants.Enabled {
		ops = 150
	}
	if *soak {
		ops, seeds = 10_000, 4
	}
	const readers = 2
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m, p := newGuestMemory(t, 128<<20, PlatformOptions{MaxVCPUs: readers})
			first := newGuestSpace(t, m, 1, progHash)
			var contexts [readers]*Context
			for i := range contexts {
				contexts[i] = p.NewContext()
				defer contexts[i].Close()
			}
			done, err := familytest.Run(t.Context(), familytest.Options{
				Memory: m, First: first, Spaces: 200, Ops: ops, Seed: seed, CheckEvery: 100, Readers: readers,
				Read: func(reader int, as *guestmem.AddressSpace, at addr.GVA, want []byte) error {
					c := contexts[reader]
					c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: uint64(at), RCX: uint64(len(want) / 8), RFLAGS: 0x202}
					if err := runToSyscall(t, p, as, c); err != nil {
						return err
					}
					if got, want := c.Regs.RAX, hashOf(want); got != want {
						return fmt.Errorf("the guest reads what hashes to %#x, want %#x", got, want)
					}
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(done)
		})
	}
}

// runToSyscall is untilSyscall for goroutines other than the test's.
func runToSyscall(t testing.TB, p *Platform, as *guestmem.AddressSpace, c *Context) error {
	for range 10000 {
		e, err := p.Run(t.Context(), as, c)
		switch {
		case err != nil:
			return err
		case e.Kind == ExitSyscall:
			return nil
		case e.Kind == ExitKicked:
		case e.Kind == ExitPageFault:
			if err := as.Fault(t.Context(), e.Addr, e.Access); err != nil {
				return fmt.Errorf("%v: %w", e, err)
			}
		default:
			return fmt.Errorf("%v (registers %+x)", e, c.Regs)
		}
	}
	return fmt.Errorf("the guest faults for ever")
}
