//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/guestmm/guestmm/kvm"
)

var (
	errStuck  = errors.New("the guest is stuck")
	errSilent = errors.New("the guest is busy and says nothing")
)

const (
	sampleEvery = time.Second
	// stuckAfter is how many samples in a row have to be equal.
	stuckAfter = 3

	flagIF = 1 << 9
)

// watch ends a guest that cannot go on: every vCPU that was started keeps its
// registers with interrupts off, sample after sample; or one that has been silent
// and busy for longer than patience, until it reads its console.
func (p *pc) watch(ctx context.Context, end context.CancelCauseFunc, patience time.Duration) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	last, same := make([]sample, len(p.cpus)), 0
	for {
		for _, c := range p.cpus {
			c.ask.Store(true)
			c.Kick()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, isNew := p.samples(last)
		if !isNew {
			continue // a vCPU has not come round: it is not stuck
		}
		if same++; !isStill(last, now) {
			same = 0
		}
		last = now
		if same >= stuckAfter {
			end(fmt.Errorf("%w: nothing changes, with interrupts off%s", errStuck, whereAll(now)))
			return
		}
		silent := p.log.silent()
		if patience > 0 && silent > patience && !p.ports.Serial.WasRead() && isBusy(now) {
			end(fmt.Errorf("%w for %v (-patience)%s", errSilent, silent.Round(time.Second), whereAll(now)))
			return
		}
	}
}

// samples returns the present ones, and whether each is newer than in last.
func (p *pc) samples(last []sample) ([]sample, bool) {
	now, isNew := make([]sample, len(p.cpus)), true
	for i, c := range p.cpus {
		c.mu.Lock()
		now[i] = c.sample
		c.mu.Unlock()
		isNew = isNew && now[i].n > last[i].n
	}
	return now, isNew
}

// isStill reports whether nothing has happened between two samples of every vCPU, and
// no interrupt can make anything happen.
func isStill(last, now []sample) bool {
	started := 0
	for i, s := range now {
		if s.mpState == kvm.MPUninitialized {
			continue
		}
		started++
		if s.regs != last[i].regs || s.mpState != last[i].mpState || s.regs.RFLAGS&flagIF != 0 {
			return false
		}
	}
	return started > 0
}

func isBusy(now []sample) bool {
	for _, s := range now {
		if s.mpState == kvm.MPRunnable {
			return true
		}
	}
	return false
}

func whereAll(now []sample) string {
	var b strings.Builder
	for i, s := range now {
		if s.mpState != kvm.MPUninitialized {
			fmt.Fprintf(&b, "; vCPU %d at rip %#x", i, s.regs.RIP)
			if s.mpState == kvm.MPHalted {
				b.WriteString(" (halted)")
			}
		}
	}
	return b.String()
}

// bootLog is the console's output on its way, which it remembers the end of.
type bootLog struct {
	format string
	out    io.Writer

	mu     sync.Mutex
	n      int       // bytes; mu
	line   []byte    // the line that is being written; mu
	before []byte    // the one before; mu
	at     time.Time // of the last byte, or of the start; mu
}

const maxLine = 200

// Write implements io.Writer.
func (l *bootLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	l.n, l.at = l.n+len(b), time.Now()
	for _, c := range b {
		switch {
		case c == '\n':
			if len(bytes.TrimSpace(l.line)) > 0 {
				l.before = append(l.before[:0], l.line...)
			}
			l.line = l.line[:0]
		case c >= ' ' && len(l.line) < maxLine:
			l.line = append(l.line, c)
		}
	}
	l.mu.Unlock()
	return l.out.Write(b)
}

// silent returns for how long nothing was written.
func (l *bootLog) silent() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() {
		l.at = time.Now()
	}
	return time.Since(l.at)
}

// String says how far the guest got.
func (l *bootLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == 0 {
		return "the " + l.format + " was entered, and wrote nothing to its console"
	}
	line := l.line
	if len(line) == 0 {
		line = l.before
	}
	return fmt.Sprintf("the %s wrote %d bytes to its console, of which the last line is %q", l.format, l.n, line)
}
