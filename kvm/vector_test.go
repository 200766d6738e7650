//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVectorStateFollowsItsContext(t *testing.T) {
	a, p := newHandPlatform(t, 256, PlatformOptions{MaxVCPUs: 1})
	const n = 3
	var spaces [n]*handSpace
	var contexts []*Context
	var want []uint64
	space := map[*Context]*handSpace{}
	for i := range n {
		h, c, _ := newHandGuest(t, a, p, progXMM)
		spaces[i], space[c] = h, h
		contexts, want = append(contexts, c), append(want, 0)
	}
	step := func(i int) {
		c := contexts[i]
		wantExit(t, p, space[c], c, Exit{Kind: ExitSyscall})
		if c.Regs.RAX != want[i] {
			t.Fatalf("context %d has %d in XMM0, want %d", i, c.Regs.RAX, want[i])
		}
		want[i]++
	}
	for range 200 {
		i := rand.IntN(len(contexts))
		step(i)
		switch rand.IntN(8) {
		case 0: // fork
			if len(contexts) > 20 {
				continue
			}
			child, err := contexts[i].Clone()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(child.Close)
			space[child] = space[contexts[i]]
			contexts, want = append(contexts, child), append(want, want[i])
		case 1: // exec: the count begins again where the program goes on adding
			contexts[i].Reset()
			want[i] = 1
		case 2: // signal frame and back
			x, err := contexts[i].XSave()
			if err != nil {
				t.Fatal(err)
			}
			step(i)
			if err := contexts[i].SetXSave(x); err != nil {
				t.Fatal(err)
			}
			want[i]--
		}
	}
}

func TestWideVectorsAreKept(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{MaxVCPUs: 1})
	if p.sys.xcr0&xfeatAVX512 == 0 {
		t.Skip("this host has no AVX-512")
	}
	type guest struct {
		h    *handSpace
		c    *Context
		data []byte
		want []byte
	}
	var guests []guest
	for range 2 {
		h, c, data := newHandGuest(t, a, p, progZMM)
		g := guest{h, c, data, make([]byte, 64)}
		for i := range g.want {
			g.want[i] = byte(rand.Uint32())
		}
		copy(data, g.want)
		c.Regs.RDI, c.Regs.RSI = uint64(dataVA), uint64(dataVA+64)
		guests = append(guests, g)
	}
	for range 4 {
		for _, g := range guests {
			clear(g.data[64:128])
			wantExit(t, p, g.h, g.c, Exit{Kind: ExitSyscall})
			if out := g.data[64:128]; !bytes.Equal(out, g.want) && !bytes.Equal(out, make([]byte, 64)) {
				t.Fatalf("ZMM31 %x, want %x", out, g.want)
			}
		}
	}
	child, err := guests[0].c.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	guests[0].c.Close()
	clear(guests[0].data)
	wantExit(t, p, guests[0].h, child, Exit{Kind: ExitSyscall})
	if out := guests[0].data[64:128]; !bytes.Equal(out, guests[0].want) {
		t.Errorf("the clone's ZMM31 %x, want %x", out, guests[0].want)
	}
}

func TestNewContextHasTheInitialVectorState(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(t, a, p, progXMM)
	check := func(when string) {
		t.Helper()
		x, err := c.XSave()
		if err != nil {
			t.Fatal(err)
		}
		if fcw := binary.LittleEndian.Uint16(x[xsaveFCW:]); fcw != 0x37f {
			t.Errorf("%s: FCW %#x", when, fcw)
		}
		if mxcsr := binary.LittleEndian.Uint32(x[xsaveMXCSR:]); mxcsr != 0x1f80 {
			t.Errorf("%s: MXCSR %#x", when, mxcsr)
		}
		if xmm0 := x[160:176]; !bytes.Equal(xmm0, make([]byte, 16)) {
			t.Errorf("%s: XMM0 %x", when, xmm0)
		}
	}
	check("new")
	mustRun(t, p, h, c)
	check("after a run that changed nothing")
	mustRun(t, p, h, c)
	c.Regs.FSBase = 8
	c.Reset()
	check("after Reset")
	if c.Regs.FSBase != 0 {
		t.Errorf("FSBase %#x after Reset", c.Regs.FSBase)
	}
}

// TestHostileXSaveIsTaken gives back images that a guest has scribbled over.
func TestHostileXSaveIsTaken(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(t, a, p, progXMM)
	x, err := c.XSave()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		for i := range x {
			x[i] = byte(rand.Uint32())
		}
		if err := c.SetXSave(x); err != nil {
			t.Fatal(err)
		}
		mustRun(t, p, h, c)
	}
	if err := c.SetXSave(x[:100]); !errors.Is(err, unix.EINVAL) {
		t.Errorf("short image: %v", err)
	}
}

// TestSpinningGuestsShareOneVCPU has more endless loops than vCPUs: each must
// move, and each must hear its kick.
func TestSpinningGuestsShareOneVCPU(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 1})
	var wg sync.WaitGroup
	for range 4 {
		h, c, data := newHandGuest(t, a, p, progSpinStore)
		c.Regs.RDI = uint64(dataVA)
		wg.Go(func() {
			if e, err := p.runAs(t.Context(), h, c); e.Kind != ExitKicked || err != nil {
				t.Errorf("Run = %v, %v", e, err)
			}
		})
		wg.Go(func() {
			defer c.Kick()
			deadline := time.Now().Add(2 * time.Minute)
			for last, moves := uint64(0), 0; moves < 3; time.Sleep(5 * time.Millisecond) {
				if now := loadWord(data); now != last {
					last = now
					moves++
				}
				if time.Now().After(deadline) {
					t.Error("a guest stands still")
					return
				}
			}
		})
	}
	wg.Wait()
	if len(p.vcpus) != 1 {
		t.Errorf("%d vCPUs, want 1", len(p.vcpus))
	}
}

// TestKickReachesAContextThatWaits kicks one that has no vCPU.
func TestKickReachesAContextThatWaits(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 1})
	h1, c1, _ := newHandGuest(t, a, p, progSpin)
	h2, c2, _ := newHandGuest(t, a, p, progSpin)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.runAs(t.Context(), h1, c1)
	}()
	time.AfterFunc(2*time.Millisecond, c2.Kick)
	wantExit(t, p, h2, c2, Exit{Kind: ExitKicked})
	c1.Kick()
	<-done
}
