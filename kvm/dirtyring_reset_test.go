//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// Of dirtyModes.
const ringMode, smallRingMode = 2, 3

// TestSignalsLoseNoDirtyPages has a vCPU write the same pages again and again, and
// harvests them, while every thread of the process gets signals as fast as can be. A reset of
// the rings that a signal ended early would leave pages that nobody hears of any more, or in
// doubt.
func TestSignalsLoseNoDirtyPages(t *testing.T) {
	rounds := 12
	if *soak {
		rounds = 1200
	}
	const size = 16 << 20
	f, r := newDirty(t, ringMode, size)
	v := f.vcpu(0, 0, GeneralRegs{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			threads, err := os.ReadDir("/proc/self/task")
			if err != nil {
				t.Error(err)
				return
			}
			for range 50 {
				select {
				case <-stop:
					return
				default:
				}
				for _, e := range threads {
					if tid, err := strconv.Atoi(e.Name()); err == nil {
						_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
					}
				}
			}
		}
	})
	var pages []addr.GPA
	for i := range 3500 {
		pages = append(pages, dirtyBase+addr.GPA(i*addr.PageSize))
	}
	for range rounds {
		f.touch(v, flatData, pages)
		found, again := map[addr.GPA]int{}, map[addr.GPA]int{}
		f.harvest(r, found)
		f.harvest(r, again)
		if len(found) < len(pages) || len(again) > 0 {
			t.Errorf("of %d pages that were written, %d were found, and then %d", len(pages), len(found), len(again))
			break
		}
	}
}

// TestAnUnfinishedResetLeavesPagesInDoubt has a reset end early, as the kernel's does for
// a signal that cannot be blocked. The rest is done at once; and since some of what was
// done may not be armed, all of it is dirty at each harvest until KVM has told of it again,
// or a new slot has armed it.
func TestAnUnfinishedResetLeavesPagesInDoubt(t *testing.T) {
	const size, part = 4 << 20, 5
	for what, end := range map[string]func(*testing.T, *flat, *VCPU, []addr.GPA){
		"told again": func(_ *testing.T, f *flat, v *VCPU, pages []addr.GPA) { f.touch(v, flatData, pages) },
		"a new slot": func(t *testing.T, f *flat, _ *VCPU, _ []addr.GPA) {
			if err := errors.Join(f.vm.slots.Clear(), f.vm.slots.UpdateRegions(f.m.Regions())); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			f, r := newDirty(t, ringMode, size)
			v := f.vcpu(0, 0, GeneralRegs{})
			d, left := f.vm.dirty, 0
			d.reset = func(fd int) (int, error) {
				if left > 0 {
					n := left
					left = 0
					return n, nil
				}
				n, err := resetRings(fd)
				if n > part {
					n, left = part, n-part
				}
				return n, err
			}
			pages := setOf(randomPages(size, 100)...)
			list := slices.Collect(maps.Keys(pages))
			f.touch(v, flatData, list)
			for _, when := range []string{"at first", "in doubt", "still in doubt"} {
				found := map[addr.GPA]int{}
				f.harvest(r, found)
				checkFound(t, when, found, pages, nil)
			}
			d.reset = resetRings
			end(t, f, v, list)
			found := map[addr.GPA]int{}
			f.harvest(r, found)
			checkFound(t, "afterwards", found, pages, nil)
			clear(found)
			f.harvest(r, found)
			checkFound(t, "with nothing in doubt", found, nil, nil)
		})
	}
}

// TestAResetWithoutEndSaysSo: the harvest fails, and the next one has all of it.
func TestAResetWithoutEndSaysSo(t *testing.T) {
	const size = 4 << 20
	f, r := newDirty(t, ringMode, size)
	v := f.vcpu(0, 0, GeneralRegs{})
	pages := randomPages(size, 100)
	f.touch(v, flatData, pages)
	f.vm.dirty.reset = func(int) (int, error) { return 0, nil }
	if err := f.m.CollectDirty(r, func(addr.GPA, uint64) { t.Error("a page of a harvest that fails") }); !errors.Is(err, unix.EINTR) {
		t.Errorf("CollectDirty = %v", err)
	}
	f.vm.dirty.reset = resetRings
	found := map[addr.GPA]int{}
	f.harvest(r, found)
	checkFound(t, "the next harvest", found, setOf(pages...), nil)
	f.touch(v, flatData, pages)
	clear(found)
	f.harvest(r, found)
	checkFound(t, "and the one after", found, setOf(pages...), nil)
}

// TestAFullRingOfAClosingVMIsNoExit: a vCPU whose ring is full while its VM is closed
// has nobody to make room, and says that the VM is closed.
func TestAFullRingOfAClosingVMIsNoExit(t *testing.T) {
	const size = 4 << 20
	f, _ := newDirty(t, smallRingMode, size)
	v := f.vcpu(0, 0, GeneralRegs{})
	f.vm.dirty.reset = func(int) (int, error) {
		f.vm.closing.Store(true)
		return 0, nil
	}
	var list []byte
	for _, p := range randomPages(size, 900) {
		list = binary.LittleEndian.AppendUint64(list, uint64(p))
	}
	f.store(list, flatData)
	f.enter(v, Ring3, 0, GeneralRegs{RSI: uint64(flatData), RCX: uint64(len(list) / 8)})
	if e, err := v.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run = %v, %v", e, err)
	}
}
