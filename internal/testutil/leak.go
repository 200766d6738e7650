package testutil

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// settleIn is how long goroutines and descriptors that are on their way out
// may take after the last test. Only what is left for good waits for its end.
const settleIn = 30 * time.Second

// Main runs the tests of a package and exits. A run that passed fails after
// all if a goroutine or a file descriptor is left that was not there before.
//
//	func TestMain(m *testing.M) { testutil.Main(m) }
func Main(m *testing.M) {
	left := Leftovers()
	code := m.Run()
	if code == 0 {
		if leaks := left(); len(leaks) > 0 {
			fmt.Fprintf(os.Stderr, "testutil: left over after the tests:\n%s\n", strings.Join(leaks, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// Leftovers takes stock of goroutines and file descriptors. The function that it
// returns lists those that have come since and have not gone after a while. It is
// for programs that are tested as processes of their own.
//
// Nothing is collected on purpose first: a finalizer would close forgotten files and
// hide them.
func Leftovers() func() []string {
	primePoller()
	before := takeStock()
	return func() []string { return settle(before) }
}

// primePoller makes the runtime open the descriptors of its network poller,
// which stay once a first pipe or socket has needed them.
func primePoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// stock is what a process holds at one time.
type stock struct {
	goroutines map[string]string // id → stack
	fds        map[string]string // number → what it is open on
}

func takeStock() stock {
	return stock{goroutines(), openFDs()}
}

// settle waits until nothing is left over, or long enough.
func settle(before stock) []string {
	deadline := time.Now().Add(settleIn)
	for {
		leaks := takeStock().since(before)
		if len(leaks) == 0 || time.Now().After(deadline) {
			return leaks
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// since lists what s holds and before did not.
func (s stock) since(before stock) []string {
	var leaks []string
	for id, stack := range s.goroutines {
		if _, was := before.goroutines[id]; !was {
			leaks = append(leaks, stack)
		}
	}
	for fd, target := range s.fds {
		if before.fds[fd] != target {
			leaks = append(leaks, fmt.Sprintf("descriptor %s is open on %s", fd, target))
		}
	}
	slices.Sort(leaks)
	return leaks
}

var goroutineHeader = regexp.MustCompile(`^goroutine (\d+) `)

// goroutines returns every goroutine's stack but those that belong to the
// process for good once it has used the feature behind them.
func goroutines() map[string]string {
	out := make(map[string]string)
	for stack := range bytes.SplitSeq(allStacks(), []byte("\n\n")) {
		id := goroutineHeader.FindSubmatch(stack)
		if id == nil || isForGood(stack) {
			continue
		}
		out[string(id[1])] = string(stack)
	}
	return out
}

func isForGood(stack []byte) bool {
	for _, frame := range []string{
		"testutil.goroutines(",   // the one that asks
		"os/signal.signal_recv(", // after signal.Notify
	} {
		if bytes.Contains(stack, []byte(frame)) {
			return true
		}
	}
	return false
}
