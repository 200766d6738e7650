//go:build linux && amd64

package kvm

import (
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func BenchmarkSyscallRoundTrip(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progSyscallLoop)
	mustRun(b, p, h, c)
	b.ReportAllocs()
	for b.Loop() {
		if e := mustRun(b, p, h, c); e.Kind != ExitSyscall {
			b.Fatal(e)
		}
	}
}

func BenchmarkSyscallFSBase(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progSyscallLoop)
	mustRun(b, p, h, c)
	b.ReportAllocs()
	for b.Loop() {
		c.Regs.FSBase ^= 0x1000
		if e := mustRun(b, p, h, c); e.Kind != ExitSyscall {
			b.Fatal(e)
		}
	}
}

func BenchmarkSyscallCR3(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progSyscallLoop)
	r1 := h.root
	r2 := a.frame(b)
	copy(a.SupervisorBytes(r2), a.SupervisorBytes(r1))
	mustRun(b, p, h, c)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if i&1 == 0 {
			h.setRoot(r1)
		} else {
			h.setRoot(r2)
		}
		if e := mustRun(b, p, h, c); e.Kind != ExitSyscall {
			b.Fatal(e)
		}
	}
}

func BenchmarkTwoContexts(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progSyscallLoop)
	h2, c2, _ := newHandGuest(b, a, p, progSyscallLoop)
	b.ReportAllocs()
	for b.Loop() {
		mustRun(b, p, h, c)
		mustRun(b, p, h2, c2)
	}
}

func BenchmarkFaultRoundTrip(b *testing.B) {
	a, p := newHandPlatform(b, 2048, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progReadPages)
	const base = addr.GVA(0x10000000)
	c.Regs.RDI = uint64(base)
	f := a.frame(b)
	va := base
	b.ReportAllocs()
	for b.Loop() {
		e := mustRun(b, p, h, c)
		if e.Kind != ExitPageFault || e.Addr != va {
			b.Fatal(e, va)
		}
		h.mapPage(va, f, 0)
		va += addr.PageSize
	}
}

// BenchmarkStopResume stops a space whose vCPU is in an endless loop: a kick,
// the way out, and the way in.
func BenchmarkStopResume(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, data := newHandGuest(b, a, p, progSpinStore)
	c.Regs.RDI = uint64(dataVA)
	done := make(chan struct{})
	go func() { defer close(done); p.runAs(b.Context(), h, c) }()
	eventually(b, "the guest counts", func() bool { return loadWord(data) > 0 })
	b.ReportAllocs()
	for b.Loop() {
		p.stop(h)
		p.resume(h)
		for was := loadWord(data); loadWord(data) == was; {
			runtime.Gosched()
		}
	}
	c.Kick()
	<-done
}

// BenchmarkStopIdle stops a space that no vCPU is in.
func BenchmarkStopIdle(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progSyscallLoop)
	mustRun(b, p, h, c)
	b.ReportAllocs()
	for b.Loop() {
		p.stop(h)
		p.resume(h)
	}
}

// BenchmarkInvalidate drops the translations to one frame.
func BenchmarkInvalidate(b *testing.B) {
	a, p := newHandPlatform(b, 256, PlatformOptions{MaxVCPUs: 1})
	h, c, _ := newHandGuest(b, a, p, progRead)
	c.Regs.RDI = uint64(dataVA)
	mustRun(b, p, h, c)
	frames := []addr.PFN{h.frameAt(dataVA)}
	b.ReportAllocs()
	for b.Loop() {
		p.invalidate(h, frames)
	}
}

// BenchmarkForkExit forks a space of 64 written pages whose vCPU then writes one
// of them, and ends the child.
func BenchmarkForkExit(b *testing.B) {
	m, p := newGuestMemory(b, 16<<20, PlatformOptions{MaxVCPUs: 1})
	as := newGuestSpace(b, m, 64, progFill)
	defer as.Close()
	c := p.NewContext()
	defer c.Close()
	run := func(n uint64) {
		c.Regs = Regs{RIP: uint64(codeAt(0)), RAX: 1, RDI: dataAt(0), RCX: n}
		untilSyscall(b, p, as, c)
	}
	run(64)
	b.ReportAllocs()
	for b.Loop() {
		child, err := as.Fork()
		if err != nil {
			b.Fatal(err)
		}
		run(1)
		child.Close()
	}
}

// BenchmarkNewPlatform makes and drops a VM, probe included and not.
func BenchmarkNewPlatform(b *testing.B) {
	for _, fresh := range []bool{false, true} {
		b.Run(map[bool]string{false: "probed", true: "probing"}[fresh], func(b *testing.B) {
			s := requireKVM(b)
			a := newArena(b, 256)
			for b.Loop() {
				if fresh {
					s.probed = false
				}
				p, err := newPlatform(s, a, a.region(), PlatformOptions{MaxVCPUs: 1})
				if err != nil {
					b.Fatal(err)
				}
				p.close()
			}
		})
	}
}
