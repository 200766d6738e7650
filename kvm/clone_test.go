//go:build linux && amd64

package kvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"golang.org/x/sys/unix"
)

// holdings is what a process holds of the host. Private memory is that of the Go
// heap too; shared is that of memfds that are mapped.
type holdings struct{ fds, mappings, privateKiB, sharedKiB int }

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
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "RssAnon: %d kB", &h.privateKiB)
		fmt.Sscanf(line, "RssShmem: %d kB", &h.sharedKiB)
	}
	return h
}

// bystander is a memory that stays, with a frame pool and a VM over it, in which
// things come and go beside the clones.
type bystander struct {
	m  *guestmem.Memory
	vm *VM
}

func newBystander(t testing.TB, sys *System) *bystander {
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	vm, err := sys.NewVM(m, VMOptions{Dirty: DirtyLog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(vm.Close(), m.Close()); err != nil {
			t.Error(err)
		}
	})
	b := &bystander{m, vm}
	b.touchAll(t)
	return b
}

// touchAll has the host give all frames of the pool, which keeps them: which ones a
// cycle takes depends on the processor that it is on.
func (b *bystander) touchAll(t testing.TB) {
	as, err := b.m.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer as.Close()
	at, err := as.Map(t.Context(), guestmem.MapOptions{Length: 8 << 20, Prot: guestmem.ProtRead | guestmem.ProtWrite, Flags: guestmem.MapPrivate | guestmem.MapAnonymous})
	for page := make([]byte, addr.PageSize); err == nil; at += addr.PageSize {
		_, err = as.WriteAt(t.Context(), page, at)
	}
	if !errors.Is(err, guestmem.ErrNoMemory) {
		t.Fatal(err)
	}
}

// cycle adds a region and an address space, uses both, forks and discards, and
// takes everything away.
func (b *bystander) cycle(t testing.TB) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := b.m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20})
	must(err)
	must(b.m.Store64(r.Base()+addr.PageSize, 1))
	must(b.m.Discard(r.Base(), r.Size()))
	must(b.m.CollectDirty(r, func(addr.GPA, uint64) {}))
	as, err := b.m.NewAddressSpace(guestmem.SpaceOptions{})
	must(err)
	at, err := as.Map(t.Context(), guestmem.MapOptions{Length: 4 * addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite, Flags: guestmem.MapPrivate | guestmem.MapAnonymous})
	must(err)
	_, err = as.WriteAt(t.Context(), make([]byte, 3*addr.PageSize), at)
	must(err)
	child, err := as.Fork()
	must(err)
	_, err = child.WriteAt(t.Context(), []byte{1}, at)
	must(err)
	must(errors.Join(child.Close(), as.Close()))
	must(b.m.RemoveRegion(r))
}

// guestHoldings is what the memory and the VM themselves say that they have.
type guestHoldings struct{ slots, regions, framesInUse, spaces, tables int }

func (b *bystander) hold() guestHoldings {
	s := b.m.Stats()
	return guestHoldings{len(b.vm.Slots().Slots()), len(b.m.Regions()), int(s.FramesInUse), s.Spaces, int(s.Tables)}
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
	stays := newBystander(t, sys)
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
		if err := m.Discard(flatData, addr.PageSize); err != nil {
			t.Fatal(err)
		}
		if x, err := m.Load64(flatData); err != nil || x != 0 {
			t.Fatalf("a discarded page has %d, %v", x, err)
		}
		switch round / len(options) % 4 {
		case 1: // a region more, for a while
			slots := vm.Slots().Slots()
			r, err := m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if round%2 == 0 {
				break
			}
			if err := m.RemoveRegion(r); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(slots, vm.Slots().Slots()); d != "" {
				t.Fatalf("slots before and after: %s", d)
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
		stays.cycle(t)
	}
	for i := range 24 { // what stays for good, such as threads
		cycle(i)
	}
	debug.FreeOSMemory()
	before, had := hold(t), stays.hold()
	for i := range rounds {
		cycle(i)
	}
	debug.FreeOSMemory()
	after := hold(t)
	// The runtime maps its own heap and stacks: some more mappings and memory, but not
	// one mapping or page for each clone, of which each has had several; and what is
	// shared is the memfds' alone.
	if after.fds > before.fds || after.mappings > before.mappings+rounds/20+10 ||
		after.privateKiB > before.privateKiB+rounds+16<<10 || after.sharedKiB > before.sharedKiB {
		t.Errorf("%d clones: from %+v to %+v", rounds, before, after)
	}
	if have := stays.hold(); have != had {
		t.Errorf("%d cycles beside them: from %+v to %+v", rounds, had, have)
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

// BenchmarkCloneFirstExit clones a guest of 256 MiB up to its first exit, and discards
// it; in turns with the same ioctls and mmap without this library. The state is
// integer and control registers alone, or the whole of it by SetState, for which the
// other side makes each call of the kernel once. It reports the medians of both, in
// microseconds, and their ratio.
func BenchmarkCloneFirstExit(b *testing.B) {
	for _, whole := range []bool{false, true} {
		b.Run(fmt.Sprintf("whole=%v", whole), func(b *testing.B) {
			const size = 256 << 20
			sys := requireKVM(b)
			tmpl, state := sealFlat(b, size, VMOptions{})
			file, err := tmpl.File(0)
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			c := cloneBench{b, sys, size, state, whole, nil}
			c.msrs = c.acceptedMSRs(tmpl)
			var ours, raw []float64
			for b.Loop() {
				ours = append(ours, c.cloned(tmpl))
				raw = append(raw, c.raw(int(file.Fd())))
			}
			slices.Sort(ours)
			slices.Sort(raw)
			b.ReportMetric(ours[len(ours)/2], "guestmm-us")
			b.ReportMetric(raw[len(raw)/2], "ioctls-us")
			b.ReportMetric(ours[len(ours)/2]/raw[len(raw)/2], "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

type cloneBench struct {
	b     *testing.B
	sys   *System
	size  int
	state *VCPUState
	whole bool
	msrs  []MSR // those of state that this host's kernel accepts
}

// acceptedMSRs is what a program that knows its host has found out once.
func (c *cloneBench) acceptedMSRs(tmpl *guestmem.Template) (accepted []MSR) {
	c.clone(tmpl, func(v *VCPU) error {
		for _, m := range c.state.MSRs {
			if n, err := v.putMSRs([]MSR{m}); err == nil && n == 1 {
				accepted = append(accepted, m)
			}
		}
		return v.SetState(c.state)
	})
	return accepted
}

func sinceMicros(start time.Time) float64 { return float64(time.Since(start)) / 1e3 }

// cloned makes one clone by this library, and returns the time to its exit.
func (c *cloneBench) cloned(tmpl *guestmem.Template) float64 {
	return c.clone(tmpl, func(v *VCPU) error {
		if c.whole {
			return v.SetState(c.state)
		}
		return errors.Join(v.SetSregs(c.state.Sregs), v.SetRegs(c.state.Regs))
	})
}

func (c *cloneBench) clone(tmpl *guestmem.Template, load func(*VCPU) error) float64 {
	b, start := c.b, time.Now()
	m, err := tmpl.Clone(guestmem.CloneOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	vm, err := c.sys.NewVM(m, VMOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Close()
	v, err := vm.NewVCPU(0)
	if err != nil {
		b.Fatal(err)
	}
	if err := load(v); err != nil {
		b.Fatal(err)
	}
	if e, err := v.Run(context.Background()); err != nil || e.Kind != VMExitIO {
		b.Fatal(e, err)
	}
	return sinceMicros(start)
}

// raw makes one by system calls alone.
func (c *cloneBench) raw(file int) float64 {
	b, sys, state := c.b, c.sys, c.state
	start := time.Now()
	must := func(n int, err error) int {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	mem, err := unix.Mmap(file, 0, c.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		b.Fatal(err)
	}
	var vm int
	must(0, retryEINTR(func() (err error) { vm, err = ioctl(sys.fd, reqCreateVM, 0); return err }))
	must(ioctlPtr(vm, reqSetMemoryRegion, &uMemoryRegion{size: uint64(c.size), hva: addressOf(mem)}))
	var vcpu int
	must(0, retryEINTR(func() (err error) { vcpu, err = ioctl(vm, reqCreateVCPU, 0); return err }))
	page, err := unix.Mmap(vcpu, 0, sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	list := &uCPUIDList{n: uint32(len(state.CPUID))}
	copy(list.entries[:], state.CPUID)
	must(ioctlPtr(vcpu, reqSetCPUID2, list))
	must(ioctlPtr(vcpu, reqSetRegs, &state.Regs))
	must(ioctlPtr(vcpu, reqSetSregs2, &state.Sregs))
	if c.whole {
		must(0, ioctlBytes(vcpu, reqSetXSave, state.XSave))
		xcrs := &uXCRs{n: 1}
		xcrs.xcrs[0].value = state.XCR0
		must(ioctlPtr(vcpu, reqSetXCRs, xcrs))
		must(ioctlPtr(vcpu, reqSetDebugRegs, &state.Debug))
		for rest := c.msrs; len(rest) > 0; {
			batch := new(uMSRBatch)
			n := copy(batch.entries[:], rest)
			batch.n = uint32(n)
			if must(ioctlPtr(vcpu, reqSetMSRs, batch)) != n {
				b.Fatal("an MSR is refused")
			}
			rest = rest[n:]
		}
		events := state.Events
		events.Flags &^= eventsTripleFault // for which the VM would have to be asked
		must(ioctlPtr(vcpu, reqSetEvents, &events))
	}
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
