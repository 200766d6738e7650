//go:build linux && amd64

package kvm

import (
	"bufio"
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
	"golang.org/x/sys/unix"
)

// holdings is what a process holds of the host.
type holdings struct{ fds, mappings int }

func hold(t testing.TB) holdings {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	h := holdings{fds: len(entries)}
	for s := bufio.NewScanner(maps); s.Scan(); {
		h.mappings++
	}
	return h
}

// sealFlat runs a guest to its first exit, and returns its state and a template
// of its memory.
func sealFlat(t testing.TB, sizeBytes uint64, o VMOptions) (*guestmem.Template, *VCPUState) {
	t.Helper()
	f := newFlat(t, sizeBytes, o, vmStore)
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData), RAX: 1})
	untilOut(t, v)
	s, err := v.State()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.vm.Close(); err != nil {
		t.Fatal(err)
	}
	tmpl, err := f.m.Seal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tmpl.Close(); err != nil {
			t.Error(err)
		}
	})
	return tmpl, s
}

// TestClonesLeaveNothingBehind clones a template, runs the clone, and discards it,
// every way that a guest ends; the process holds what it held at the beginning.
func TestClonesLeaveNothingBehind(t *testing.T) {
	rounds := 100
	if *soak {
		rounds = 10000
	}
	sys := requireKVM(t)
	var templates []*guestmem.Template
	var states []*VCPUState
	options := []VMOptions{{}, {Dirty: DirtyLog}, {Dirty: DirtyRing}}
	for _, o := range options {
		tmpl, s := sealFlat(t, 4<<20, o)
		templates, states = append(templates, tmpl), append(states, s)
	}
	cycle := func(round int) {
		i := round % len(options)
		m, err := templates[i].Clone(guestmem.CloneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		vm, err := sys.NewVM(m, options[i])
		if err != nil {
			t.Fatal(err)
		}
		v, err := vm.NewVCPU(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.SetState(states[i]); err != nil {
			t.Fatal(err)
		}
		r, _ := v.Regs()
		r.RAX = uint64(round)
		if err := v.SetRegs(r); err != nil {
			t.Fatal(err)
		}
		untilOut(t, v)
		if x, err := m.Load64(flatData); err != nil || x != 1 && x != uint64(round) {
			t.Fatalf("the clone has %d, %v", x, err)
		}
		switch round / len(options) % 4 {
		case 1: // a region more
			if _, err := m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20}); err != nil {
				t.Fatal(err)
			}
		case 2: // in the guest
			done := testutil.Go(func() {
				for err := error(nil); err == nil; {
					_, err = v.Run(context.Background())
				}
			})
			runtime.Gosched()
			defer func() { <-done }()
		case 3: // kicked, and closed twice
			v.Kick()
			vm.Close()
		}
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 24 { // what stays for good, such as threads
		cycle(i)
	}
	runtime.GC()
	before := hold(t)
	for i := range rounds {
		cycle(i)
	}
	runtime.GC()
	after := hold(t)
	// The runtime maps its own heap and stacks; not one mapping for each clone.
	if after.fds > before.fds || after.mappings > before.mappings+rounds/20+10 {
		t.Errorf("%d clones: from %+v to %+v", rounds, before, after)
	}
	t.Logf("%d clones: from %+v to %+v", rounds, before, after)
}

// TestFailedVMLeavesNothingBehind has creation fail at each descriptor that it needs.
func TestFailedVMLeavesNothingBehind(t *testing.T) {
	sys := requireKVM(t)
	m := newFlatMemory(t, 4<<20, guestmem.RegionOptions{})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	before := hold(t)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	first, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fds = append(fds, first)
	for room := range 4 {
		// Every number below the limit is taken, but for room of them.
		limit := old
		limit.Cur = uint64(first + 64)
		for {
			fd, err := unix.FcntlInt(uintptr(first), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil || fd >= int(limit.Cur) {
				if err == nil {
					unix.Close(fd)
				}
				break
			}
			fds = append(fds, fd)
		}
		for range room {
			unix.Close(fds[len(fds)-1])
			fds = fds[:len(fds)-1]
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		vm, err := sys.NewVM(m, VMOptions{IRQChip: IRQChipKernel, PIT: PITKernel, Dirty: DirtyLog})
		if err == nil {
			for id := 0; id < 4 && err == nil; id++ {
				_, err = vm.NewVCPU(id)
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		}
		if restore := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); restore != nil {
			t.Fatal(restore)
		}
		if err == nil {
			t.Errorf("with %d descriptors: no error", room)
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	fds = nil
	if after := hold(t); after.fds != before.fds {
		t.Errorf("from %+v to %+v", before, after)
	}
	// And the memory is as it was: a VM comes up.
	vm, err := sys.NewVM(m, VMOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkCloneFirstExit clones a guest of 256 MiB, whose state is registers and
// control registers, up to its first exit, and discards it; in turns with the same
// ioctls and mmap without this library. It reports the medians of both, in
// microseconds, and their ratio.
func BenchmarkCloneFirstExit(b *testing.B) {
	const size = 256 << 20
	sys := requireKVM(b)
	tmpl, state := sealFlat(b, size, VMOptions{})
	file, err := tmpl.File(0)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	var ours, raw []float64
	for b.Loop() {
		ours = append(ours, libraryClone(b, sys, tmpl, state))
		raw = append(raw, rawClone(b, sys, int(file.Fd()), size, state))
	}
	slices.Sort(ours)
	slices.Sort(raw)
	b.ReportMetric(ours[len(ours)/2], "guestmm-us")
	b.ReportMetric(raw[len(raw)/2], "ioctls-us")
	b.ReportMetric(ours[len(ours)/2]/raw[len(raw)/2], "ratio")
	b.ReportMetric(0, "ns/op")
}

func sinceMicros(start time.Time) float64 { return float64(time.Since(start)) / 1e3 }

// libraryClone makes one clone by this library, and returns the time to its exit.
func libraryClone(b *testing.B, sys *System, tmpl *guestmem.Template, state *VCPUState) float64 {
	start := time.Now()
	m, err := tmpl.Clone(guestmem.CloneOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	vm, err := sys.NewVM(m, VMOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Close()
	v, err := vm.NewVCPU(0)
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(v.SetSregs(state.Sregs), v.SetRegs(state.Regs)); err != nil {
		b.Fatal(err)
	}
	if e, err := v.Run(context.Background()); err != nil || e.Kind != VMExitIO {
		b.Fatal(e, err)
	}
	return sinceMicros(start)
}

// rawClone makes one by system calls alone.
func rawClone(b *testing.B, sys *System, file int, size int, state *VCPUState) float64 {
	start := time.Now()
	must := func(n int, err error) int {
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	mem, err := unix.Mmap(file, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		b.Fatal(err)
	}
	var vm int
	must(0, retryEINTR(func() (err error) { vm, err = ioctl(sys.fd, reqCreateVM, 0); return err }))
	must(ioctlPtr(vm, reqSetMemoryRegion, &uMemoryRegion{size: uint64(size), hva: addressOf(mem)}))
	var vcpu int
	must(0, retryEINTR(func() (err error) { vcpu, err = ioctl(vm, reqCreateVCPU, 0); return err }))
	page, err := unix.Mmap(vcpu, 0, sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	list := &uCPUIDList{n: uint32(len(state.CPUID))}
	copy(list.entries[:], state.CPUID)
	must(ioctlPtr(vcpu, reqSetCPUID2, list))
	must(ioctlPtr(vcpu, reqSetSregs2, &state.Sregs))
	must(ioctlPtr(vcpu, reqSetRegs, &state.Regs))
	for {
		errno := ioctlRun(vcpu)
		if errno == 0 && runPage(page).exitReason == exitIO {
			break
		}
		if errno != unix.EINTR {
			b.Fatal(errno)
		}
	}
	took := sinceMicros(start)
	unix.Munmap(page)
	unix.Close(vcpu)
	unix.Close(vm)
	unix.Munmap(mem)
	return took
}
