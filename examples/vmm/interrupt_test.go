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

	"github.com/guestmm/guestmm/internal/testutil"
)

// interrupted runs the VMM, sends it SIGINT once a process with its number is as far as
// wanted, and returns how it ended. A run that was faster is tried again.
func interrupted(t *testing.T, isThere func(pid int) bool, args ...string) ran {
	t.Helper()
	for range 10 {
		c := command(t, args...)
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan ran, 1)
		go func() { ended <- finish(t, c, &out, &errs) }()
		deadline := time.Now().Add(patience)
		for !isThere(c.Process.Pid) && len(ended) == 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		_ = c.Process.Signal(os.Interrupt)
		if got := <-ended; got.status != statusOK {
			return got
		}
	}
	t.Fatalf("%q was never interrupted", args)
	return ran{}
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
