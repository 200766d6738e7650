package pager_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd/pager"
)

// BenchmarkRestoreToFirstExit is from the beginning of StartRestore to the first exit
// of the guest, the making of the VM and its vCPU among it, with an open file. The
// memory holds a page of data for each 4 MiB. What is replayed is what the guest needs
// for its first exit.
//
// Beside it stands the floor: a VM, slots over the same memory and a vCPU by bare
// calls, nothing restored and nothing run. Nobody's first exit comes sooner, and it is
// all of what grows with memory: without KVM's own second level of page tables (shadow
// paging, or tdp_mmu off) the kernel allocates and clears 8 bytes and more for each page
// of a slot before the slot is there.
func BenchmarkRestoreToFirstExit(b *testing.B) {
	for _, size := range []uint64{64 << 20, 1 << 30, 16 << 30, 64 << 30} {
		for _, replay := range []bool{false, true} {
			b.Run(fmt.Sprintf("size=%dMiB/replay=%v", size>>20, replay), func(b *testing.B) {
				benchmarkFirstExit(b, size, replay)
			})
		}
	}
}

func benchmarkFirstExit(b *testing.B, size uint64, replay bool) {
	testutil.RequireKVM(b)
	testutil.RequireUFFD(b, testutil.UFFDMissingShmem)
	p := newProgram(b, size/pageSize, 1024)
	f, err := snapfile.Open(p.save(b), snapfile.OpenOptions{})
	must(b, err)
	defer f.Close()
	e := exiting{b: b, p: p, f: f, o: pager.RestoreOptions{Fail: func(error) {}, WorkingSets: pager.NoWorkingSet, Rest: pager.LeaveRest}}
	if replay {
		e.o.WorkingSets = pager.ReplayAndRecord
		e.once() // records
		e.o.WorkingSets = pager.ReplayOnly
	}
	e.started, e.exited, e.floor, e.above = nil, nil, nil, nil
	for b.Loop() {
		e.once()
	}
	report := func(part []time.Duration, what string) {
		slices.Sort(part)
		b.ReportMetric(float64(part[len(part)/2].Microseconds()), "µs/"+what+"-p50")
	}
	report(e.started, "start")
	report(e.exited, "first-exit")
	report(e.floor, "floor")
	report(e.above, "above-floor")
	b.ReportMetric(float64(e.exited[len(e.exited)*9/10].Microseconds()), "µs/first-exit-p90")
	b.ReportMetric(0, "ns/op")
}

// exiting restores a guest again and again until its first exit.
type exiting struct {
	b *testing.B
	p *program
	f *snapfile.File
	o pager.RestoreOptions

	started, exited, floor, above []time.Duration
}

func (e *exiting) once() {
	sys, err := kvm.Open()
	must(e.b, err)
	defer sys.Close()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	must(e.b, err)
	defer m.Close()
	began := time.Now()
	r, err := pager.StartRestore(context.Background(), m, e.f, e.o)
	must(e.b, err)
	defer r.Close()
	started := time.Since(began)

	// One after the other, each of them first every other time: what the one has
	// freed, the other finds at hand.
	var floor time.Duration
	first := len(e.exited)%2 == 0
	if first {
		floor = bareVM(e.b, m)
	}
	began = time.Now()
	exited := started + e.run(sys, m, began)
	if !first {
		floor = bareVM(e.b, m)
	}
	e.started, e.exited = append(e.started, started), append(e.exited, exited)
	e.floor, e.above = append(e.floor, floor), append(e.above, exited-floor)
}

// run makes the machine, and returns how long after began it exits first.
func (e *exiting) run(sys *kvm.System, m *guestmem.Memory, began time.Time) time.Duration {
	vm, err := sys.NewVM(m, kvm.VMOptions{})
	must(e.b, err)
	defer vm.Close()
	vcpu, err := vm.NewVCPU(0)
	must(e.b, err)
	must(e.b, e.p.long.Enter(vcpu, kvm.Ring3, kvm.GeneralRegs{RIP: codeAt, RSP: 0x180000, RBX: key, RDI: uint64(ramAt), R9: uint64(ramAt), R10: 1}))
	exit, err := vcpu.Run(context.Background())
	took := time.Since(began)
	if err != nil || exit.Kind != kvm.VMExitIO || exit.Data[0] != 1 {
		e.b.Fatalf("%v, %v", exit, err)
	}
	return took
}

// bareVM returns how long the kernel takes to make a VM, a slot over each region
// and a vCPU.
func bareVM(b *testing.B, m *guestmem.Memory) time.Duration {
	const createVM, createVCPU = 0xae01, 0xae41
	dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(b, err)
	defer unix.Close(dev)
	began := time.Now()
	vm, err := unix.IoctlRetInt(dev, createVM)
	for err == unix.EINTR {
		vm, err = unix.IoctlRetInt(dev, createVM)
	}
	must(b, err)
	defer unix.Close(vm)
	for i, r := range m.Regions() {
		must(b, kvm.VMSlots(vm).SetSlot(guestmem.Slot{ID: uint32(i), Base: r.Base(), Size: r.Size(), HVA: addr.HVA(r.Slot())}))
	}
	vcpu, err := unix.IoctlRetInt(vm, createVCPU)
	must(b, err)
	defer unix.Close(vcpu)
	return time.Since(began)
}
