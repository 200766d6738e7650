//go:build linux && amd64

package kernel

import (
	"bytes"
	"io"
	"math/bits"
	"os"
	"sync"
	"time"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vdso"
)

// timekeeper computes the clocks from the time-stamp counter, for system calls
// by the very numbers that the vDSO of every guest process computes them from:
// a guest that mixes both never sees time go back.
//
// The guest's counter is the host's plus a constant, which is measured (see
// counterOffset). How long a tick is comes from comparing with the host's
// CLOCK_MONOTONIC: over the start of the sandbox at first (good to 0.2 ms in a
// second), then over a longer and longer time, up to 16 s. What has gone wrong
// by then is made up for by a rate that is a little off until the next
// comparison, so that the clock has no steps. CLOCK_REALTIME is a constant
// more, until somebody sets the host's clock.
type timekeeper struct {
	page   clockPage // immutable
	offset int64     // guest's counter less the host's; immutable

	mu     sync.Mutex
	seq    uint32       // guarded by mu, as all below
	now    clockFormula // what the page says
	rate   float64      // ns per tick, as measured
	anchor reading      // that rate is measured from
	moved  bool         // anchor is not the first
}

// clockPage is where the vDSO reads: words of guest memory.
type clockPage interface {
	store32(offset uint64, v uint32) error
	store64(offset uint64, v uint64) error
}

// clockFormula is the formula: base + (counter - tsc) * mult >> vdso.Shift.
type clockFormula struct {
	tsc, base, realtime uint64
	mult                uint32
}

func (c *clockFormula) at(tsc uint64) (ns uint64) {
	since := tsc - c.tsc
	if int64(since) < 0 {
		since = 0
	}
	hi, lo := bits.Mul64(since, uint64(c.mult))
	return c.base + (hi<<(64-vdso.Shift) | lo>>vdso.Shift)
}

const (
	// maxJitter is by how much two readings of the same difference between
	// CLOCK_REALTIME and CLOCK_MONOTONIC may differ; more is a set clock.
	maxJitter = 5 * time.Microsecond

	// maxLag is how far behind the clock may be before it is set forward: the
	// sandbox was stopped, or the host was suspended.
	maxLag = time.Millisecond

	// anchorAge is how old a reading is measured from at most: the host's own
	// clock changes its rate as NTP tells it.
	anchorAge = 16 * time.Second

	minAnchorAge = time.Second
)

// haveCounter reports whether the host's kernel itself tells time by the
// counter: it ticks at one rate in all states and on all processors.
func haveCounter() bool {
	info, err := firstProcessor()
	if err != nil || !bytes.Contains(info, []byte(" constant_tsc")) || !bytes.Contains(info, []byte(" nonstop_tsc")) {
		return false // CPUID 0x80000007, EDX bit 8, as the kernel judges it
	}
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return false
	}
	switch string(bytes.TrimSpace(source)) {
	case "tsc", "kvm-clock", "hyperv_clocksource_tsc_page":
		return counter() != 0
	}
	return false
}

// firstProcessor returns the beginning of /proc/cpuinfo. All of it takes
// milliseconds on a host of many processors.
func firstProcessor() ([]byte, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info := make([]byte, 8192)
	n, err := io.ReadAtLeast(f, info, 2048)
	if err == io.ErrUnexpectedEOF {
		err = nil
	}
	return info[:n], err
}

func counter() uint64 { return cpuid.CPU.RTCounter() }

// reading is the host's clocks at one value of its counter.
type reading struct{ tsc, monotonic, realtime uint64 }

// readClocks takes the best of several tries: the one that nobody interrupted.
func readClocks() (best reading) {
	shortest := ^uint64(0)
	for range 8 {
		var mono, real, again unix.Timespec
		before := counter()
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
		middle := counter()
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &real)
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &again)
		if took := counter() - before; took < shortest {
			shortest = took
			half := uint64(again.Nano()-mono.Nano()) / 2
			best = reading{before + (middle-before)/2, uint64(mono.Nano()), uint64(real.Nano()) - half}
		}
	}
	return best
}

// newTimekeeper begins with a rate measured between two readings.
func newTimekeeper(page clockPage, offset int64, first, second reading) (*timekeeper, error) {
	t := &timekeeper{page: page, offset: offset, anchor: first}
	t.rate = float64(second.monotonic-first.monotonic) / float64(second.tsc-first.tsc)
	t.now = clockFormula{
		tsc: second.tsc + uint64(offset), base: second.monotonic,
		realtime: second.realtime - second.monotonic, mult: multOf(t.rate),
	}
	return t, t.publishLocked(t.now)
}

func multOf(rate float64) uint32 { return uint32(rate*(1<<vdso.Shift) + 0.5) }

// run compares with the host's clock until done is closed.
func (t *timekeeper) run(done <-chan struct{}, failed func(error)) {
	next := 10 * time.Millisecond
	timer := time.NewTimer(next)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-timer.C:
		}
		next = min(next*4, time.Second)
		if err := t.adjust(readClocks(), next); err != nil {
			failed(err)
			return
		}
		timer.Reset(next)
	}
}

// adjust chooses the rate that leads to the host's time in about next.
func (t *timekeeper) adjust(host reading, next time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.measureLocked(host)
	// Readers of the old numbers are shut out before the counter is read: none
	// has, or will have, a later value of it.
	t.seq++
	if err := t.page.store32(vdso.Seq, t.seq); err != nil {
		return err
	}
	c := clockFormula{tsc: counter() + uint64(t.offset), realtime: t.now.realtime}
	c.base = t.now.at(c.tsc)
	hostNow := int64(host.monotonic) + int64(float64(int64(c.tsc-uint64(t.offset)-host.tsc))*t.rate)
	lag := time.Duration(hostNow - int64(c.base))
	if lag > maxLag {
		c.base, lag = uint64(hostNow), 0
	}
	slew := min(max(float64(lag)/float64(next), -0.5), 0.01)
	c.mult = multOf(t.rate * (1 + slew))
	if d := int64(host.realtime - host.monotonic - c.realtime); d > int64(maxJitter) || d < -int64(maxJitter) {
		c.realtime += uint64(d)
	}
	return t.storeLocked(c)
}

// measureLocked takes the rate from the anchor on. A new anchor is not measured
// from while it is young, except for the first.
func (t *timekeeper) measureLocked(host reading) {
	age := time.Duration(host.monotonic - t.anchor.monotonic)
	if t.moved && age < minAnchorAge || host.tsc <= t.anchor.tsc {
		return
	}
	t.rate = float64(age) / float64(host.tsc-t.anchor.tsc)
	if age >= anchorAge {
		t.anchor, t.moved = host, true
	}
}

func (t *timekeeper) publishLocked(c clockFormula) error {
	t.seq++
	if err := t.page.store32(vdso.Seq, t.seq); err != nil {
		return err
	}
	return t.storeLocked(c)
}

// storeLocked writes what is behind an odd seq, and makes it even.
func (t *timekeeper) storeLocked(c clockFormula) error {
	for _, w := range []struct{ offset, v uint64 }{{vdso.TSC, c.tsc}, {vdso.Base, c.base}, {vdso.Realtime, c.realtime}} {
		if err := t.page.store64(w.offset, w.v); err != nil {
			return err
		}
	}
	if err := t.page.store32(vdso.Mult, c.mult); err != nil {
		return err
	}
	t.now = c
	t.seq++
	return t.page.store32(vdso.Seq, t.seq)
}

// read returns a clock that the vDSO has too.
func (t *timekeeper) read(id int32) (unix.Timespec, bool) {
	switch id {
	case unix.CLOCK_REALTIME, unix.CLOCK_REALTIME_COARSE, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC_COARSE:
	default:
		return unix.Timespec{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	ns := t.now.at(counter() + uint64(t.offset))
	if id == unix.CLOCK_REALTIME || id == unix.CLOCK_REALTIME_COARSE {
		ns += t.now.realtime
	}
	return unix.NsecToTimespec(int64(ns)), true
}
