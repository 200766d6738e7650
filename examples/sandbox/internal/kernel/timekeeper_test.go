//go:build linux && amd64

package kernel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vdso"
)

// page is a data page, read as the vDSO reads it.
type page struct{ words [8]atomic.Uint32 }

func (p *page) store32(offset uint64, v uint32) error {
	p.words[offset/4].Store(v)
	return nil
}

func (p *page) store64(offset uint64, v uint64) error {
	p.words[offset/4].Store(uint32(v))
	p.words[offset/4+1].Store(uint32(v >> 32))
	return nil
}

func (p *page) load64(offset uint64) uint64 {
	return uint64(p.words[offset/4].Load()) | uint64(p.words[offset/4+1].Load())<<32
}

// monotonic is the vDSO's function of that name, in Go.
func (p *page) monotonic() uint64 {
	for {
		seq := p.words[vdso.Seq/4].Load()
		if seq&1 != 0 {
			continue
		}
		now := counter()
		f := clockFormula{tsc: p.load64(vdso.TSC), base: p.load64(vdso.Base), mult: p.words[vdso.Mult/4].Load()}
		if p.words[vdso.Seq/4].Load() == seq {
			return f.at(now)
		}
	}
}

func newTestKeeper(t *testing.T) (*timekeeper, *page) {
	t.Helper()
	if !haveCounter() {
		t.Skip("the time-stamp counter of this host is no clock; run the test where /proc/cpuinfo says constant_tsc and nonstop_tsc")
	}
	p := new(page)
	first := readClocks()
	time.Sleep(2 * time.Millisecond)
	k, err := newTimekeeper(p, 0, first, readClocks())
	if err != nil {
		t.Fatal(err)
	}
	return k, p
}

func TestClockFormula(t *testing.T) {
	for _, tt := range []struct {
		f    clockFormula
		tsc  uint64
		want uint64
	}{
		{clockFormula{tsc: 100, base: 7, mult: 1 << 31}, 300, 107},
		{clockFormula{tsc: 100, base: 7, mult: 1 << 31}, 99, 7}, // another processor, a tick behind
		{clockFormula{tsc: 0, base: 0, mult: 1 << 31}, 1 << 62, 1 << 61},
		{clockFormula{tsc: 1 << 63, base: 1, mult: 1<<32 - 1}, 1<<63 + 1<<40, 1<<40 - 1<<8 + 1},
	} {
		if got := tt.f.at(tt.tsc); got != tt.want {
			t.Errorf("%+v at %d is %d, want %d", tt.f, tt.tsc, got, tt.want)
		}
	}
}

// Whatever the host's clock turns out to be, time goes on: readers of the page
// and of the timekeeper, in any order, never see it go back.
//
//	reader                       adjust
//	seq 2, counter 100
//	                             seq 3, counter 110, new numbers, seq 4
//	old numbers, seq 4: again
func TestClockNeverGoesBack(t *testing.T) {
	k, p := newTestKeeper(t)
	var done atomic.Bool
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for n, last := 0, uint64(0); !done.Load(); n++ {
				now := p.monotonic()
				if (n+i)%4 == 0 {
					ts, _ := k.read(unix.CLOCK_MONOTONIC)
					now = uint64(ts.Nano())
				}
				if now < last {
					t.Errorf("back by %d ns", last-now)
					return
				}
				if last = now; n%16 == 0 {
					runtime.Gosched() // there may be no processor left for adjust
				}
			}
		})
	}
	for i := range 400 {
		host := readClocks()
		// Ahead and behind by up to 0.4 ms, and now and then by a second.
		host.monotonic += uint64((i%9 - 4) * 100_000)
		if i%50 == 49 {
			host.monotonic += uint64((i%100 - 75) * 40_000_000)
		}
		if err := k.adjust(host, 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Microsecond)
	}
	done.Store(true)
	wg.Wait()
}

// The clock comes back to the host's, without a step, and stays there. On a busy host
// a rate that was chosen for 20 ms may hold for much longer, and lead past the goal;
// so it has time until it was right five times in a row.
func TestClockFollowsHost(t *testing.T) {
	k, _ := newTestKeeper(t)
	k.mu.Lock()
	k.now.base -= 300_000 // behind, by less than what would be a step
	k.rate *= 1.0003
	k.mu.Unlock()
	const next, most = 20 * time.Millisecond, 100 * time.Microsecond
	var off time.Duration
	for round, right := 0, 0; right < 5; round++ {
		if round == 500 {
			t.Fatalf("off by %v", off)
		}
		if err := k.adjust(readClocks(), next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(next)
		if off = offHost(t, k); off < -most || off > most {
			right = 0
		} else {
			right++
		}
	}
}

// offHost is by how much the clock is ahead of the host's, read before and after it: by
// how much at least, if other things were done between the two.
func offHost(t *testing.T, k *timekeeper) time.Duration {
	t.Helper()
	var before, after unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &before); err != nil {
		t.Fatal(err)
	}
	ts, _ := k.read(unix.CLOCK_MONOTONIC)
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &after); err != nil {
		t.Fatal(err)
	}
	switch now := ts.Nano(); {
	case now < before.Nano():
		return time.Duration(now - before.Nano())
	case now > after.Nano():
		return time.Duration(now - after.Nano())
	}
	return 0
}

func TestClockIsSet(t *testing.T) {
	k, _ := newTestKeeper(t)
	before := k.now.realtime
	host := readClocks()
	host.realtime = host.monotonic + before + 2000 // noise
	if err := k.adjust(host, time.Second); err != nil || k.now.realtime != before {
		t.Errorf("%v; noise moved the clock by %d ns", err, k.now.realtime-before)
	}
	host = readClocks()
	host.realtime = host.monotonic + before - uint64(time.Hour)
	if err := k.adjust(host, time.Second); err != nil {
		t.Fatal(err)
	}
	if moved := int64(k.now.realtime - before); moved != -int64(time.Hour) {
		t.Errorf("an hour back moved the clock by %v", time.Duration(moved))
	}
	if _, ok := k.read(unix.CLOCK_BOOTTIME); ok {
		t.Error("CLOCK_BOOTTIME is not the vDSO's")
	}
}
