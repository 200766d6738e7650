//go:build linux && amd64

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// interrupted runs the VMM, sends it SIGINT while a process with its number is as far as
// wanted, and returns how it ended. A run that was faster is tried again.
func interrupted(t *testing.T, isThere func(pid int) bool, args ...string) ran {
	t.Helper()
	for range 100 {
		c := command(t, args...)
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan ran, 1)
		go func() { ended <- finish(t, c, &out, &errs) }()
		for len(ended) == 0 && !halted(c.Process, isThere) {
			time.Sleep(time.Millisecond)
		}
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Process.Signal(unix.SIGCONT)
		if got := <-ended; got.status != statusOK {
			return got
		}
	}
	t.Fatalf("%q was never interrupted", args)
	return ran{}
}

// halted stops a process that is as far as wanted: what comes next then finds it there,
// however late.
func halted(p *os.Process, isThere func(pid int) bool) bool {
	if !isThere(p.Pid) || p.Signal(unix.SIGSTOP) != nil {
		return false
	}
	// A thread may wait for a page, which another would have brought, and then does not
	// stop before the others go on.
	for n := 0; n < 50 && !isStopped(p.Pid); n++ {
		time.Sleep(time.Millisecond)
	}
	if isThere(p.Pid) {
		return true
	}
	_ = p.Signal(unix.SIGCONT) // it was about to go on
	return false
}

// isStopped reports whether each thread of a process stands still, or is no more.
func isStopped(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if _, state, ok := bytes.Cut(b, []byte(") ")); err == nil && ok && !bytes.ContainsAny(state[:1], "TZX") {
			return false
		}
	}
	return true
}

// hasMapped reports whether a process has a file of such a name in its memory.
func hasMapped(pid int, what string) bool {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	return err == nil && bytes.Contains(maps, []byte(what))
}

func hasOpen(pid int, what string) bool {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, n := range names {
		if to, err := os.Readlink(n); err == nil && strings.Contains(to, what) {
			return true
		}
	}
	return false
}

// TestInterruptedFiles ends each run on files in its middle: with 130, and nothing but
// what was there before is left.
func TestInterruptedFiles(t *testing.T) {
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	dir := t.TempDir()
	file := filepath.Join(dir, "guest.snap")
	if got := within("-snapshot", file, "-mem", "128M"); got.status != statusOK {
		t.Fatal(got)
	}
	fresh := filepath.Join(dir, "fresh.snap")
	for _, x := range []struct {
		at   string // the name of what it has open then
		args []string
	}{
		{".snaptmp", []string{"-snapshot", fresh, "-mem", "128M"}},
		{".snaptmp", []string{"-snapshot", fresh, "-mem", "128M", "-tracker", "log"}},
		{"guest.snap", []string{"verify", file}},
		{"memfd:data", []string{"-restore", file}},
		{"memfd:data", []string{"-restore", file, "-lazy"}},
		{"memfd:data", []string{"-restore", file, "-clones", "2"}},
	} {
		got := interrupted(t, func(pid int) bool { return hasOpen(pid, x.at) }, x.args...)
		if got.status != statusInterrupted || !strings.Contains(got.stderr, "interrupted") || strings.Contains(got.stdout, "ok") || strings.Contains(got.stderr, "left behind") {
			t.Errorf("%q: %v", x.args, got)
		}
		os.Remove(fresh) // of a run that was faster
		os.Remove(file + ".workingset")
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%q: left: %v, %v", x.args, left, err)
		}
	}
}
