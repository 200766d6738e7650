package guestmem

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// touchedMemory returns a memory of one region, every page of which is mapped and not
// zero.
func touchedMemory(b *testing.B, size uint64) (*Memory, *Region) {
	testutil.RequireUFFD(b, testutil.UFFDWPUnpopulated)
	m := newPhys(b)
	r := mustAdd(b, m, RegionOptions{Size: size})
	touchAll(b, r)
	return m, r
}

func touchAll(b *testing.B, r *Region) {
	for off := uint64(0); off < r.size; off += page {
		if err := slotStore(r, off, []byte{1}); err != nil {
			b.Fatal(err)
		}
	}
}

// rawArm is the kernel's part of a first pause: one ioctl over the whole region.
func rawArm(b *testing.B, r *Region) time.Duration {
	fd, err := uffd.Open(uffd.Options{Required: uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem})
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	if _, err := fd.Register(r.Slot(), r.size, uffd.WP); err != nil {
		b.Fatal(err)
	}
	defer fd.Unregister(r.Slot(), r.size)
	began := time.Now()
	if err := fd.WriteProtect(r.Slot(), r.size, uffd.Armed); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// BenchmarkSnapshotPause compares the pause of a first snapshot with the raw arming
// ioctl of the same memory, and that of a second one, after 1 % was written in so
// many runs, with the first.
func BenchmarkSnapshotPause(b *testing.B) {
	const size = 1 << 30
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("first/size=1GiB/workers=%d", workers), func(b *testing.B) {
			m, r := touchedMemory(b, size)
			var pause, raw time.Duration
			for b.Loop() {
				raw += rawArm(b, r)
				s, err := m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand, Workers: workers})
				mustDo(b, err)
				pause += s.Stats().Pause
				mustDo(b, s.Close())
			}
			b.ReportMetric(float64(pause.Microseconds())/float64(b.N), "pause-µs")
			b.ReportMetric(float64(pause)/float64(raw), "×raw")
		})
	}
	for _, runs := range []uint64{40, 400, 2600} {
		b.Run(fmt.Sprintf("again/size=1GiB/runs=%d", runs), func(b *testing.B) {
			m, r := touchedMemory(b, size)
			s, err := m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand})
			mustDo(b, err)
			first := s.Stats().Pause
			var pause time.Duration
			var calls uint64
			for b.Loop() {
				for i := range runs {
					for k := range size / page / 100 / runs {
						mustDo(b, slotStore(r, (i*(size/page/runs)+k)*page, []byte{2}))
					}
				}
				next, err := m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand})
				mustDo(b, err)
				pause += next.Stats().Pause
				calls += next.Stats().DirtyRuns
				mustDo(b, s.Close())
				s = next
			}
			mustDo(b, s.Close())
			b.ReportMetric(float64(pause.Microseconds())/float64(b.N), "pause-µs")
			b.ReportMetric(float64(calls)/float64(b.N), "calls")
			b.ReportMetric(float64(pause)/float64(b.N)/float64(first), "×first")
		})
	}
}

// BenchmarkFirstWrite is one write by a system call to a page that is armed and was
// not copied, that was copied by the sweep and is still armed, and that never was
// armed.
func BenchmarkFirstWrite(b *testing.B) {
	const size = 64 << 20
	for _, when := range []string{"closed", "open", "swept", "disarmed"} {
		b.Run("snapshot="+when, func(b *testing.B) {
			m, r := touchedMemory(b, size)
			var s *Snapshot
			at := uint64(size)
			for b.Loop() {
				if at == size {
					b.StopTimer()
					if s != nil {
						mustDo(b, s.Close())
					}
					if when != "closed" {
						o := SnapshotOptions{Sweep: SweepOnDemand}
						if when == "disarmed" {
							o.After = DisarmSwept
						}
						s = mustSnapshotOf(b, m, o)
						if when != "open" {
							mustSweep(b, s)
						}
						for when == "disarmed" && r.anyArmed(0, r.nPages()) {
							time.Sleep(time.Millisecond)
						}
					}
					at = 0
					b.StartTimer()
				}
				mustDo(b, slotStore(r, at, []byte{3}))
				at += page
			}
		})
	}
}

var _ addr.GPA

// BenchmarkFirstWriteRaw is the yardstick of BenchmarkFirstWrite: the same write, where
// all that the server does is to read the fault and to disarm the page: no snapshot, no
// copy, no books. Its thread sleeps in poll(2), or asks all the time.
func BenchmarkFirstWriteRaw(b *testing.B) {
	const size = 64 << 20
	for _, wait := range []struct {
		name    string
		timeout time.Duration
	}{{"sleeps", -1}, {"asks", 0}} {
		b.Run("server="+wait.name, func(b *testing.B) {
			_, r := touchedMemory(b, size)
			fd, err := uffd.Open(uffd.Options{Required: uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem})
			mustDo(b, err)
			defer fd.Close()
			_, err = fd.Register(r.Slot(), size, uffd.WP)
			mustDo(b, err)
			wt, err := fd.NewWaiter()
			mustDo(b, err)
			served := testutil.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				events := make([]uffd.Event, 16)
				for {
					n, err := wt.Wait(events, wait.timeout)
					if err != nil {
						return
					}
					for i := range events[:n] {
						_ = fd.WriteProtect(events[i].Page(page), page, 0)
					}
				}
			})
			for at := uint64(size); b.Loop(); at += page {
				if at == size {
					b.StopTimer()
					mustDo(b, fd.WriteProtect(r.Slot(), size, uffd.Armed))
					at = 0
					b.StartTimer()
				}
				mustDo(b, slotStore(r, at, []byte{3}))
			}
			mustDo(b, fd.Unregister(r.Slot(), size))
			mustDo(b, wt.Close())
			<-served
		})
	}
}
