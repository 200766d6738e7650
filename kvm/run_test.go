//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

func mustRun(t testing.TB, p *Platform, h rooted, c *Context) Exit {
	t.Helper()
	e, err := p.runAs(t.Context(), h, c)
	if err != nil {
		t.Fatalf("%v (registers %+x)", err, c.Regs)
	}
	return e
}

func wantExit(t testing.TB, p *Platform, h rooted, c *Context, want Exit) {
	t.Helper()
	got := mustRun(t, p, h, c)
	got.RunTime = 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("exit (-want +got):\n%s\nregisters %+x", diff, c.Regs)
	}
}

// fillRegs gives every register but RIP a random value of its own.
func fillRegs(r *Regs) {
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		v.Field(i).SetUint(rand.Uint64())
	}
	r.RIP = uint64(codeVA)
	r.FSBase = uint64(int64(r.FSBase<<16) >> 16)
	r.GSBase = uint64(int64(r.GSBase<<16) >> 16)
	r.RFLAGS = userFlags(r.RFLAGS) &^ flagsTF
}

func TestSyscallKeepsEveryRegister(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSyscallThenUD)
	for range 20 {
		fillRegs(&c.Regs)
		want := c.Regs
		want.RIP += 2
		want.RCX, want.R11 = want.RIP, want.RFLAGS
		wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
		if diff := cmp.Diff(want, c.Regs); diff != "" {
			t.Fatalf("registers at the syscall (-want +got):\n%s", diff)
		}
		// RCX and R11 too, since the caller may set them (sigreturn).
		fillRegs(&c.Regs)
		c.Regs.RIP += 2
		want = c.Regs
		wantExit(t, p, h, c, Exit{Kind: ExitException, Vector: vectorUD})
		if diff := cmp.Diff(want, c.Regs); diff != "" {
			t.Fatalf("registers after it (-want +got):\n%s", diff)
		}
	}
}

func TestBasesAreLoadedAndSeen(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, data := newHandGuest(t, a, p, progFSBase)
	for i, off := range []int{0, 8, 16} {
		binary.LittleEndian.PutUint64(data[off:], uint64(100+i))
	}
	c.Regs.FSBase, c.Regs.GSBase, c.Regs.RSI = uint64(dataVA), uint64(dataVA+8), uint64(dataVA+16)
	wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
	got := []uint64{c.Regs.RAX, c.Regs.RBX, c.Regs.RDX, c.Regs.R8, c.Regs.FSBase, c.Regs.GSBase}
	want := []uint64{100, 101, uint64(dataVA + 16), 102, uint64(dataVA + 16), uint64(dataVA + 8)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPageFaultNamesAddressAndAccess(t *testing.T) {
	a, p := newHandPlatform(t, 256, PlatformOptions{})
	const hole, upper = dataVA + 0x5000, upperBase + 0x1000
	for _, tt := range []struct {
		name string
		prog program
		at   addr.GVA
		want Exit
	}{
		{"read of nothing", progRead, hole + 8, Exit{Access: guestmem.Read, ErrorCode: pfUser}},
		{"write to nothing", progWrite, hole + 16, Exit{Access: guestmem.Write, ErrorCode: pfUser | pfWrite}},
		{"jump to nothing", progJump, hole + 24, Exit{Access: guestmem.Execute, ErrorCode: pfUser | pfExecute}},
		{"write to read-only", progWrite, codeVA, Exit{Access: guestmem.Write, ErrorCode: pfUser | pfWrite | pfPresent}},
		{"jump to no-execute", progJump, dataVA, Exit{Access: guestmem.Execute, ErrorCode: pfUser | pfExecute | pfPresent}},
		{"read of the supervisor half", progRead, upper, Exit{Access: guestmem.Read, ErrorCode: pfUser | pfPresent}},
		{"write to the supervisor half", progWrite, upper + 0xf000, Exit{Access: guestmem.Write, ErrorCode: pfUser | pfWrite | pfPresent}},
		{"jump to the supervisor half", progJump, upper, Exit{Access: guestmem.Execute, ErrorCode: pfUser | pfExecute | pfPresent}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, c, _ := newHandGuest(t, a, p, tt.prog)
			c.Regs.RDI = uint64(tt.at)
			tt.want.Kind, tt.want.Vector, tt.want.Addr = ExitPageFault, vectorPF, tt.at
			wantExit(t, p, h, c, tt.want)
			// Not resolved: the same again.
			wantExit(t, p, h, c, tt.want)
		})
	}
}

func TestFaultIsResolvedByInstalling(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progRead)
	const at = dataVA + 0x5000
	c.Regs.RDI = uint64(at)
	wantExit(t, p, h, c, Exit{Kind: ExitPageFault, Vector: vectorPF, Addr: at, Access: guestmem.Read, ErrorCode: pfUser})
	f := h.mapPage(at, 0, 0)
	binary.LittleEndian.PutUint64(a.SupervisorBytes(f), 0x1122334455667788)
	wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
	if c.Regs.RAX != 0x1122334455667788 {
		t.Errorf("the guest read %#x", c.Regs.RAX)
	}
}

func TestRegistersThatCannotBeEnteredAreTheGuestsFault(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progUD)
	for _, set := range []func(*Regs){
		func(r *Regs) { r.RIP = 1 << 47 },
		func(r *Regs) { r.FSBase = 1 << 63 },
		func(r *Regs) { r.GSBase = 1 << 50 },
	} {
		c.Regs = Regs{RIP: uint64(codeVA)}
		set(&c.Regs)
		wantExit(t, p, h, c, Exit{Kind: ExitException, Vector: vectorGP})
	}
	// Any RFLAGS can: what ring 3 may not have is taken off.
	c.Regs = Regs{RIP: uint64(codeVA), RFLAGS: ^uint64(0) &^ flagsTF}
	wantExit(t, p, h, c, Exit{Kind: ExitException, Vector: vectorUD})
	if want := uint64(flagsUser&^flagsTF | flagsFixed); c.Regs.RFLAGS != want {
		t.Errorf("RFLAGS %#x, want %#x", c.Regs.RFLAGS, want)
	}
}

func TestKickEndsAGuestThatNeverExits(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSpin)
	for range 50 {
		before := c.Regs.RAX
		timer := time.AfterFunc(time.Duration(rand.IntN(2000))*time.Microsecond, c.Kick)
		wantExit(t, p, h, c, Exit{Kind: ExitKicked})
		timer.Stop()
		if c.Regs.RIP != uint64(codeVA) && c.Regs.RIP != uint64(codeVA+3) {
			t.Fatalf("RIP %#x", c.Regs.RIP)
		}
		if c.Regs.RAX < before {
			t.Fatalf("RAX went from %d to %d", before, c.Regs.RAX)
		}
	}
	if c.Regs.RAX == 0 {
		t.Error("the guest never ran")
	}
	c.Kick() // beforehand: the next Run
	wantExit(t, p, h, c, Exit{Kind: ExitKicked})
}

// TestKickLosesNothing kicks a guest at every point of its way through faults
// and system calls: its own count must come out right.
func TestKickLosesNothing(t *testing.T) {
	a, p := newHandPlatform(t, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(t, a, p, progReadPages)
	spin, spinner, _ := newHandGuest(t, a, p, progSpin)
	_ = spin
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rand.IntN(60)) * time.Microsecond):
				c.Kick()
			}
		}
	}()
	const base = addr.GVA(0x10000000)
	c.Regs.RDI = uint64(base)
	f := a.frame(t)
	kicks := 0
	for va, end := base, base+100<<addr.PageShift; va < end; {
		switch e := mustRun(t, p, h, c); {
		case e.Kind == ExitKicked:
			kicks++
			if kicks%16 == 0 { // another thread in between must change nothing
				spinner.Kick()
				mustRun(t, p, spin, spinner)
			}
		case e.Kind == ExitPageFault && e.Addr == va:
			h.mapPage(va, f, 0)
			va += addr.PageSize
		case e.Kind == ExitPageFault && e.Addr == va-addr.PageSize:
			// Raised before the page was there, delivered after it.
		default:
			t.Fatalf("%v, at %v", e, va)
		}
	}
	t.Logf("%d kicks", kicks)
}

func TestContextEndsARun(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSpin)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	e, err := p.runAs(ctx, h, c)
	if e.Kind != ExitKicked || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run = %v, %v", e, err)
	}
	if c.Regs.RAX == 0 {
		t.Error("the guest never ran")
	}
	// Another context: runs again.
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if e, err := p.runAs(ctx, h, c); e.Kind != ExitKicked || !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, %v", e, err)
	}
}

func TestRunDoesNotAllocate(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSyscallLoop)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.runAs(ctx, h, c); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a Run", n)
	}
}

func TestOneRunAtATime(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, _ := newHandGuest(t, a, p, progSpin)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c.kicked.Load() == false && !c.running.Load() {
			time.Sleep(100 * time.Microsecond)
		}
		if _, err := p.runAs(t.Context(), h, c); !errors.Is(err, ErrBusy) {
			t.Errorf("second Run: %v", err)
		}
		for {
			p.mu.Lock()
			inside := c.vcpu != nil
			p.mu.Unlock()
			if inside {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
		if err := p.close(); !errors.Is(err, ErrBusy) {
			t.Errorf("close during a Run: %v", err)
		}
		if _, err := c.Clone(); !errors.Is(err, ErrBusy) {
			t.Errorf("Clone during a Run: %v", err)
		}
		c.Kick()
	}()
	wantExit(t, p, h, c, Exit{Kind: ExitKicked})
	<-done
}

func TestSlotIsTheRegionsMapping(t *testing.T) {
	a, p := newHandPlatform(t, 64, PlatformOptions{})
	h, c, data := newHandGuest(t, a, p, progRead)
	c.Regs.RDI = uint64(dataVA)
	copy(data, "through")
	wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
	// With that page of the slot's mapping out of the way the guest cannot reach
	// it, whatever becomes of the alias; KVM_RUN says so, the Platform lives on.
	page := a.slot[h.frameAt(dataVA).GPA()-a.base:][:addr.PageSize]
	if err := unix.Mprotect(page, unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	_, err := p.runAs(t.Context(), h, c)
	if !errors.Is(err, unix.EFAULT) {
		t.Errorf("Run over an unreachable slot: %v", err)
	}
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	c.Regs = Regs{RIP: uint64(codeVA), RDI: uint64(dataVA)}
	wantExit(t, p, h, c, Exit{Kind: ExitSyscall})
	if got := binary.LittleEndian.Uint64([]byte("through\x00")); c.Regs.RAX != got {
		t.Errorf("the guest read %#x, want %#x", c.Regs.RAX, got)
	}
}
