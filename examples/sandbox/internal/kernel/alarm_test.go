//go:build linux && amd64

package kernel

import (
	"testing"
	"time"
)

// setClock is a clock that the test sets.
type setClock struct{ now *time.Duration }

func (c setClock) nowLocked() time.Duration { return *c.now }
func (setClock) speedLocked() int           { return 1 }
func (setClock) aliveLocked() bool          { return true }

// Who takes a timer's signal is told how often it has expired by then, whether or not
// the host's timer, here an hour away, has been there to say so.
func TestTimerIsCountedWhenItsSignalIsTaken(t *testing.T) {
	var now time.Duration
	k := &Kernel{}
	p := &Process{k: k}
	task := &Task{k: k, proc: p}
	x := &posixTimer{sig: 40}
	x.p, x.clock, x.fire = p, setClock{&now}, x.expired
	k.mu.Lock()
	defer k.mu.Unlock()
	defer x.stopLocked()

	take := func(want int) {
		t.Helper()
		info, ok := task.takeSignalLocked(bit(40))
		if !ok || info.missed != want || x.missed != want {
			t.Errorf("taken: %v, missed %d and %d; want %d", ok, info.missed, x.missed, want)
		}
	}
	pend := func(missed int) { p.pending.add(sigInfo{sig: 40, timer: x, missed: missed}) }

	x.setLocked(time.Hour, time.Hour)
	now = 90 * time.Minute
	pend(0)
	take(1) // at one hour
	now = 2*time.Hour - 1
	pend(3)
	take(3)
	now = 10 * time.Hour
	pend(3)
	take(3 + 9) // from two hours to ten
	if left, _ := x.leftLocked(); left != time.Hour {
		t.Errorf("%v left, want an hour", left)
	}
	x.setLocked(time.Hour, 0)
	now += 5 * time.Hour
	pend(0)
	take(0) // once
}
