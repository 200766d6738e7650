//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// spinners runs n endless guests in one space; each counts in a page of its own.
func spinners(t *testing.T, a *arena, p *Platform, n int) (*handSpace, [][]byte, func()) {
	t.Helper()
	h, first, _ := newHandGuest(t, a, p, progSpinStore)
	var counters [][]byte
	var contexts []*Context
	var wg sync.WaitGroup
	for i := range n {
		c := p.NewContext()
		c.Regs = first.Regs
		va := dataVA + addr.GVA(i+1)<<addr.PageShift
		counters = append(counters, a.SupervisorBytes(h.mapPage(va, 0, pteW)))
		c.Regs.RDI = uint64(va)
		contexts = append(contexts, c)
		wg.Go(func() {
			if e, err := p.runAs(t.Context(), h, c); err != nil || e.Kind != ExitKicked {
				t.Errorf("spinner: %v, %v", e, err)
			}
		})
	}
	for _, c := range counters {
		eventually(t, "the guest counts", func() bool { return loadWord(c) > 0 })
	}
	return h, counters, func() {
		for _, c := range contexts {
			c.Kick()
		}
		wg.Wait()
		for _, c := range contexts {
			c.Close()
		}
	}
}

func TestStopKeepsEveryVCPUOut(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 2})
	h, counters, end := spinners(t, a, p, 2)
	defer end()
	still := func() {
		t.Helper()
		var before []uint64
		for _, c := range counters {
			before = append(before, loadWord(c))
		}
		time.Sleep(2 * time.Millisecond)
		for i, c := range counters {
			if now := loadWord(c); now != before[i] {
				t.Fatalf("guest %d runs while its space is stopped", i)
			}
		}
	}
	for range 5 {
		p.stop(h)
		still()
		p.stop(h) // nests
		p.resume(h)
		still()
		var before []uint64
		for _, c := range counters {
			before = append(before, loadWord(c))
		}
		p.resume(h)
		for i, c := range counters {
			eventually(t, "the guest goes on", func() bool { return loadWord(c) != before[i] })
		}
	}
}

func TestStopOfAnotherSpaceDisturbsNobody(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 1})
	_, counters, end := spinners(t, a, p, 1)
	defer end()
	other := newHandSpace(t, a, p)
	p.stop(other)
	before := loadWord(counters[0])
	eventually(t, "the guest goes on", func() bool { return loadWord(counters[0]) != before })
	p.resume(other)
	if len(p.spaces) != 1 {
		t.Errorf("%d spaces known, want 1", len(p.spaces))
	}
}

// TestStopRacesWithEntries has several stop and resume at random while guests
// enter and leave: what a stop promises is looked at each time.
//
//	vCPU thread                 stopper
//	state = in
//	                            stops++
//	                            state is in: kick (too early for KVM_RUN)
//	stops > 0 (or immediate_exit is set): out
func TestStopRacesWithEntries(t *testing.T) {
	a, p := newHandPlatform(t, 128, PlatformOptions{MaxVCPUs: 2})
	h, counters, end := spinners(t, a, p, 2)
	defer end()
	rounds := 300
	if *soak {
		rounds = 30000
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range rounds {
				if i%3 == 0 {
					p.stopAll()
				} else {
					p.stop(h)
				}
				x, y := loadWord(counters[0]), loadWord(counters[1])
				for range rand.IntN(3000) {
					if loadWord(counters[0]) != x || loadWord(counters[1]) != y {
						t.Error("a guest runs while its space is stopped")
						break
					}
				}
				if i%3 == 0 {
					p.resumeAll()
				} else {
					p.resume(h)
				}
				time.Sleep(time.Duration(rand.IntN(100)) * time.Microsecond)
			}
		})
	}
	wg.Wait()
}

func TestKickReachesAContextAtTheGate(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSpin)
	p.stop(h)
	defer p.resume(h)
	time.AfterFunc(2*time.Millisecond, c.Kick)
	wantExit(t, p, h, c, Exit{Kind: ExitKicked})
	if c.Regs.RAX != 0 {
		t.Error("the guest ran")
	}
}

func TestNewRootIsUsedAfterResume(t *testing.T) {
	a, p := newHandPlatform(t, 256, PlatformOptions{MaxVCPUs: 1})
	h, counters, end := spinners(t, a, p, 1)
	defer end()
	// Another root, fresh all the way down, whose counter page is another frame.
	n := newHandSpace(t, a, p)
	n.mapPage(codeVA, h.frameAt(codeVA), 0)
	counter := a.SupervisorBytes(n.mapPage(dataVA+addr.PageSize, 0, pteW))
	p.stop(h)
	h.setRoot(n.Root())
	before := loadWord(counters[0])
	p.resume(h)
	eventually(t, "the guest counts on the new root", func() bool { return loadWord(counter) > 0 })
	if got := loadWord(counters[0]); got != before {
		t.Errorf("the guest wrote through the old root after Resume: %d, was %d", got, before)
	}
}

// copier runs progCopy, and returns a function that waits until the guest has
// read its source anew and says what.
func copier(t *testing.T, a *arena, p *Platform) (*handSpace, func() uint64, func()) {
	t.Helper()
	h, c, data := newHandGuest(t, a, p, progCopy)
	const src = dataVA + addr.PageSize
	f := h.mapPage(src, 0, 0)
	storeWord(a.SupervisorBytes(f), 1)
	c.Regs.RDI, c.Regs.RSI = uint64(src), uint64(dataVA)
	var wg sync.WaitGroup
	wg.Go(func() { p.runAs(t.Context(), h, c) })
	read := func() uint64 {
		for range 2 { // the first may have been read before
			storeWord(data, 0)
			eventually(t, "the guest copies", func() bool { return loadWord(data) != 0 })
		}
		return loadWord(data)
	}
	return h, read, func() { c.Kick(); wg.Wait() }
}

// TestR8InvalidateReachesARunningVCPU rewrites a present entry under a vCPU
// that never leaves the guest by itself, in every way that there is. What the
// probe chose must heal; what it passed over as too weak must not, or the
// probe is wrong.
func TestR8InvalidateReachesARunningVCPU(t *testing.T) {
	for way := byFlush; way <= byZap; way++ {
		t.Run(way.String(), func(t *testing.T) {
			a, p := newHandPlatform(t, 64, PlatformOptions{})
			chosen := p.traits.invalidate
			if way > chosen && way == byFlush {
				t.Skip("not a way of this host")
			}
			p.traits.invalidate = way
			h, read, end := copier(t, a, p)
			defer end()
			if got := read(); got != 1 {
				t.Fatalf("the guest reads %d at first", got)
			}
			const src = dataVA + addr.PageSize
			stale := 0
			for i := uint64(2); i < 12; i++ {
				old := h.frameAt(src)
				f := h.mapPage(src, 0, 0)
				storeWord(a.SupervisorBytes(f), i)
				p.invalidate(h, []addr.PFN{old})
				if got := read(); got != i {
					stale++
				}
			}
			if way >= chosen && stale > 0 {
				t.Errorf("stale %d times of 10", stale)
			}
			if way < chosen && stale == 0 {
				t.Errorf("never stale, but the probe chose %v", chosen)
			}
		})
	}
}

// TestR8WithoutInvalidateATranslationIsStale shows what Invalidate is for.
func TestR8WithoutInvalidateATranslationIsStale(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	if p.traits.invalidate == byFlush {
		t.Skip("on this host a stale translation lives in the TLB, and need not be there")
	}
	h, read, end := copier(t, a, p)
	defer end()
	read()
	const src = dataVA + addr.PageSize
	storeWord(a.SupervisorBytes(h.mapPage(src, 0, 0)), 2)
	if got := read(); got != 1 {
		t.Errorf("the guest reads %d through the entry that no longer is", got)
	}
}

// TestR8RecycledTablesAreNotTakenForTheOldOnes makes and drops address spaces
// whose tables are made of the last ones' frames, in few frames, and has a guest
// read every page of each.
func TestR8RecycledTablesAreNotTakenForTheOldOnes(t *testing.T) {
	rounds := 400
	if *soak {
		rounds = 40000
	}
	a, p := newHandPlatform(t, 512, PlatformOptions{MaxVCPUs: 1, Quarantine: 64})
	wrong := recycleTables(t, a, p, rounds)
	if wrong > 0 {
		t.Errorf("%d of %d spaces read wrong", wrong, rounds)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.reused) < 4*rounds-64 {
		t.Errorf("%d frames came back of some %d", len(a.reused), 4*rounds)
	}
	if int(a.next) > 400 {
		t.Errorf("%d frames were used: nothing is recycled", a.next)
	}
}

// recycleTables returns how many spaces' sums were wrong.
func recycleTables(t *testing.T, a *arena, p *Platform, rounds int) (wrong int) {
	const nPages = 16
	var data []addr.PFN
	for i := range 64 {
		f := a.frame(t)
		binary.LittleEndian.PutUint64(a.SupervisorBytes(f), uint64(1)<<i%61+uint64(i))
		data = append(data, f)
	}
	code := a.frame(t)
	copy(a.SupervisorBytes(code), progSum.code)
	c := p.NewContext()
	defer c.Close()
	for range rounds {
		h := newHandSpace(t, a, p)
		h.mapPage(codeVA, code, 0)
		base := addr.GVA(rand.IntN(400)+0x10)<<21 + codeVA
		want := uint64(0)
		for i := range nPages {
			f := data[rand.IntN(len(data))]
			h.mapPage(base+addr.GVA(i)<<addr.PageShift, f, 0)
			want += binary.LittleEndian.Uint64(a.SupervisorBytes(f))
		}
		c.Regs = Regs{RIP: uint64(codeVA), RDI: uint64(base), RCX: nPages}
		e, err := p.runAs(t.Context(), h, c)
		if err != nil || e.Kind != ExitSyscall || c.Regs.RAX != want {
			wrong++
		}
		// In any order, so that a frame becomes what it was (a root again, a last
		// level again) as well as something else.
		old := h.tables()
		rand.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] })
		p.retire(old)
	}
	return wrong
}

func TestQuarantineIsFlushedOnRequest(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{Quarantine: 1000})
	frames, err := a.AllocSupervisor(3)
	if err != nil {
		t.Fatal(err)
	}
	p.retire(frames)
	if len(a.reused) != 0 {
		t.Error("not quarantined")
	}
	p.flush()
	if len(a.reused) != 3 {
		t.Errorf("%d frames came back, want 3", len(a.reused))
	}
}
