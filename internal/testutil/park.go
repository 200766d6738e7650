package testutil

import (
	"runtime"
	"testing"
	"time"
)

const (
	// parkedFor is how long a channel must stay blocked to count as parked.
	// It can only miss a fault, never report one that is not there, so it is
	// short: a goroutine that is free to run does so in microseconds.
	parkedFor = 20 * time.Millisecond
	// proceedsIn is how long a worker that is free to run may take. It is
	// long: a host that others need too may give it its processor seconds
	// later, and only who hangs waits for its end.
	proceedsIn = 2 * time.Minute
)

// Go starts fn and returns a channel that is closed when fn has ended.
func Go(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	return done
}

// Parked fails t if ch gives a value or is closed within a moment: whoever
// would do so should be waiting for something that has not happened.
func Parked[T any](t testing.TB, ch <-chan T, who string) {
	t.Helper()
	timer := time.NewTimer(parkedFor)
	defer timer.Stop()
	select {
	case <-ch:
		t.Fatalf("%s went on, and should be waiting", who)
	case <-timer.C:
	}
}

// Proceeds waits until ch gives a value or is closed, and returns the value.
// It fails t, with every goroutine's stack, if that takes too long.
func Proceeds[T any](t testing.TB, ch <-chan T, who string) T {
	t.Helper()
	timer := time.NewTimer(proceedsIn)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("%s is still waiting after %v, and should have gone on\n%s", who, proceedsIn, allStacks())
		panic("unreachable")
	}
}

// Within runs fn in a goroutine of its own and fails t, with every
// goroutine's stack, if it has not returned after d. fn may call t.Fatal.
func Within(t testing.TB, d time.Duration, fn func()) {
	t.Helper()
	returned := false // guarded by done
	done := Go(func() {
		fn()
		returned = true
	})
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		if !returned { // fn left by t.FailNow or t.SkipNow
			runtime.Goexit()
		}
	case <-timer.C:
		t.Fatalf("not done after %v\n%s", d, allStacks())
	}
}

// allStacks returns the stacks of every goroutine, cut at 1 MiB.
func allStacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}
