//go:build linux && amd64

package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
)

var soak = flag.Bool("soak", false, "run what races 25 times instead of 3")

// times is how often a program that races with itself is run.
func times() int {
	if *soak {
		return 25
	}
	return 3
}

// onVCPUs runs a test with fewer vCPUs than the host has processors, as many,
// and more, beside each other: much of what is tested is waiting. No test may write a
// program that the host is to execute meanwhile (it would be busy: ETXTBSY).
func onVCPUs(t *testing.T, test func(t *testing.T, s sandbox)) {
	for _, n := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("vcpus=%d", n), func(t *testing.T) {
			t.Parallel()
			for range times() {
				test(t, sandbox{flags: []string{"-vcpus", strconv.Itoa(n)}})
			}
		})
	}
}

// threadModes are what testdata/threads.c does, each in a process of its own.
var threadModes = []string{"clone", "futex", "stress", "robust", "apart", "pi", "signals", "storm", "ends", "vfork", "stop", "forkexec"}

func TestThreads(t *testing.T) {
	program := guest(t, "threads")
	for _, mode := range threadModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			onVCPUs(t, func(t *testing.T, s sandbox) { s.run(t, program, mode).want(t, 0, "right\n") })
		})
	}
	sandbox{}.run(t, program, "none").want(t, 0, "right\n")
}

// Threads make calls at random, on memory, words and descriptors that they share.
func TestThreadsAtRandom(t *testing.T) {
	program := guest(t, "threads")
	var seed atomic.Int32
	onVCPUs(t, func(t *testing.T, s sandbox) {
		s.run(t, program, "chaos", string('a'+seed.Add(1)%64)).want(t, 0, "right\n")
	})
}

// What the programs want of the sandbox is what Linux does.
func TestThreadsUnderLinux(t *testing.T) {
	program := guest(t, "threads")
	for _, mode := range threadModes {
		out, err := exec.CommandContext(t.Context(), program, mode).Output()
		if err != nil || string(out) != "right\n" {
			t.Errorf("%s: %v: %s", mode, err, out)
		}
	}
}

// A guest that makes threads without end is refused, and leaves none behind.
func TestMillionThreads(t *testing.T) {
	r := sandbox{}.run(t, guest(t, "threads"), "million")
	r.want(t, 0, "EAGAIN\n")
	if r.report.Threads < 1000 {
		t.Errorf("refused after %d threads", r.report.Threads)
	}
}

func TestPthreads(t *testing.T) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc: a static glibc program cannot be built; install gcc and libc6-dev")
	}
	program := filepath.Join(t.TempDir(), "pthreads")
	build := exec.Command(cc, "-O1", "-static", "-pthread", "-o", program, "testdata/glibc/pthreads.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("gcc: %v: %s; a static libc is needed, in Debian that of libc6-dev", err, out)
	}
	onVCPUs(t, func(t *testing.T, s sandbox) { s.run(t, program).want(t, 0, "pthreads are right\n") })
}

// Timers by time that passes and time that is spent.
func TestTimers(t *testing.T) {
	program := guest(t, "timers")
	out, err := exec.CommandContext(t.Context(), program).Output()
	if err != nil || string(out) != "timers are right\n" {
		t.Errorf("under Linux: %v: %s", err, out)
	}
	onVCPUs(t, func(t *testing.T, s sandbox) { s.run(t, program).want(t, 0, "timers are right\n") })
}

// A Go program profiles itself, by a timer for each of its threads and one for
// the process.
func TestGoProfile(t *testing.T) {
	program := goProgram(t, "testdata/goprof/main.go")
	sandbox{}.run(t, program).want(t, 0, "burn is in the profile\n")
}

// A static Go program, with its threads, signals and garbage collector, prints
// what it prints under Linux.
func TestGoProgram(t *testing.T) {
	program := goProgram(t, "testdata/gohash/main.go")
	want, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	onVCPUs(t, func(t *testing.T, s sandbox) {
		r := s.run(t, program)
		r.want(t, 0, string(want))
		if r.report != nil && r.report.Threads < 3 {
			t.Errorf("%d threads: nothing ran beside anything", r.report.Threads)
		}
	})
}

// goProgram builds a static Go program.
func goProgram(t *testing.T, source string) string {
	t.Helper()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command: the program cannot be built; put go into PATH")
	}
	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command(goTool, "build", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return program
}
