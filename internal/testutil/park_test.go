package testutil

import (
	"runtime"
	"testing"
	"time"
)

// outcome runs fn as a test would be run, up to its first Fatal.
func outcome(fn func(t testing.TB)) *verdict {
	v := &exitingVerdict{}
	<-Go(func() { fn(v) })
	return &v.verdict
}

type exitingVerdict struct{ verdict }

func (v *exitingVerdict) Fatalf(f string, a ...any) {
	v.verdict.Fatalf(f, a...)
	runtime.Goexit()
}

func TestParked(t *testing.T) {
	ch := make(chan int)
	if v := outcome(func(t testing.TB) { Parked(t, ch, "worker") }); v.kind != "" {
		t.Errorf("a blocked channel: %s", v.text)
	}
	close(ch)
	if v := outcome(func(t testing.TB) { Parked(t, ch, "worker") }); v.kind != "fail" {
		t.Error("a closed channel counts as parked")
	}
}

func TestProceeds(t *testing.T) {
	ch := make(chan int, 1)
	ch <- 7
	if got := Proceeds(t, ch, "worker"); got != 7 {
		t.Errorf("got %d, want 7", got)
	}
}

func TestWithin(t *testing.T) {
	if v := outcome(func(t testing.TB) { Within(t, time.Minute, func() {}) }); v.kind != "" {
		t.Errorf("a function that returns: %s", v.text)
	}
	stop := make(chan struct{})
	defer close(stop)
	if v := outcome(func(t testing.TB) { Within(t, time.Millisecond, func() { <-stop }) }); v.kind != "fail" {
		t.Error("a function that hangs is within its deadline")
	}
	reached := false
	outcome(func(t testing.TB) {
		Within(t, time.Minute, func() { t.Fatalf("inside") })
		reached = true
	})
	if reached {
		t.Error("a Fatal inside does not end the test")
	}
}
