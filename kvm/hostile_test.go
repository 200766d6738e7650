//go:build linux && amd64

package kvm

import (
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

var soak = flag.Bool("soak", false, "run the long versions of tests")

// runHostile runs a program until it exits, with a kick after the time given, and
// returns the exit; what is no exit may only be the guest's death.
func runHostile(t testing.TB, p *Platform, h rooted, c *Context, after time.Duration) (Exit, bool) {
	timer := time.AfterFunc(after, c.Kick)
	defer timer.Stop()
	e, err := p.runAs(t.Context(), h, c)
	if err != nil {
		if !errors.Is(err, ErrGuestState) {
			t.Fatalf("error that is no guest's death: %v", err)
		}
		return e, false
	}
	return e, true
}

// checkHealthy runs a good guest on every vCPU of the pool.
func checkHealthy(t testing.TB, p *Platform, h rooted) {
	t.Helper()
	c := p.NewContext()
	defer c.Close()
	for range len(p.vcpus) {
		c.Regs = Regs{RIP: uint64(codeVA), RDI: uint64(dataVA), FSBase: 0x1000}
		if e := mustRun(t, p, h, c); e.Kind != ExitSyscall {
			t.Fatalf("the good guest got %v", e)
		}
		if c.Regs.FSBase != 0x1000 || c.Regs.RDI != uint64(dataVA) {
			t.Fatalf("the good guest's registers: %+x", c.Regs)
		}
	}
}

func TestHostileInstructionsAreExceptions(t *testing.T) {
	a, p := newHandPlatform(t, 2048, PlatformOptions{MaxVCPUs: 1})
	good, _, _ := newHandGuest(t, a, p, progRead)
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			h, c, _ := newHandGuest(t, a, p, program{code: tt.code + progUD.code})
			e, alive := runHostile(t, p, h, c, time.Minute) // they all exit by themselves
			checkHealthy(t, p, good)
			vector := -10
			if e.Kind == ExitException || e.Kind == ExitPageFault {
				vector = int(e.Vector)
			}
			switch {
			case !alive:
				t.Errorf("the guest died without an exception")
			case vector == tt.vector, tt.vector == anyFault && vector >= 0, tt.vector == anyExit && vector >= 0:
			default:
				t.Errorf("%v at %#x, want vector %d", e, c.Regs.RIP, tt.vector)
			}
			t.Logf("%v, RIP +%d", e, c.Regs.RIP-uint64(codeVA))
		})
	}
}

// TestRandomInstructions runs random bytes: whatever they are, the guest ends
// in an exit or dies, and the next guest on the same vCPU is not the worse for
// it.
func TestRandomInstructions(t *testing.T) {
	rounds := 1500
	if *soak {
		rounds = 150000
	}
	a, p := newHandPlatform(t, 64, PlatformOptions{MaxVCPUs: 1})
	good, _, _ := newHandGuest(t, a, p, progRead)
	h, c, data := newHandGuest(t, a, p, progUD)
	code := a.SupervisorBytes(h.frameAt(codeVA))
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %#x", seed)
	interesting := [][]byte{{0x0f}, {0x0f, 0x01}, {0x0f, 0xae}, {0xf3, 0x0f}, {0xcd}, {0x0f, 0xc7}, {0xe6}, {0x8e}, {0x66, 0x0f}, {0xc4}, {0x62}, {0x0f, 0x05}, {0xf0}, {0x0f, 0x00}, {0x6c}, {0xcf}}
	var kinds [4]int
	dead := 0
	for range rounds {
		for i := range code {
			code[i] = byte(r.Uint32())
		}
		for i := 0; i < 64; i += 1 + r.IntN(8) {
			copy(code[i:], interesting[r.IntN(len(interesting))])
		}
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		fillRegs(&c.Regs)
		for _, reg := range []*uint64{&c.Regs.RDI, &c.Regs.RSI, &c.Regs.RBX, &c.Regs.RSP} {
			*reg = uint64(dataVA) + r.Uint64N(addr.PageSize)
		}
		for range 20 {
			e, alive := runHostile(t, p, h, c, 20*time.Millisecond)
			if !alive {
				dead++
				break
			}
			kinds[e.Kind]++
			if e.Kind != ExitSyscall {
				break
			}
		}
	}
	checkHealthy(t, p, good)
	t.Logf("kicked, syscalls, page faults, exceptions: %v; died: %d", kinds, dead)
}
