//go:build linux && amd64

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// clock runs testdata/clock.c, and skips where there is no vDSO.
func clock(t *testing.T, args ...string) ran {
	t.Helper()
	r := sandbox{}.run(t, append([]string{guest(t, "clock")}, args...)...)
	if r.stdout == "no vDSO\n" {
		t.Skip("no vDSO: the time-stamp counter of this host is no clock; run the test where its clock source is tsc")
	}
	return r
}

// Readings by the vDSO and by the system call, taken in turns, never go back.
func TestClocksAgree(t *testing.T) { clock(t).want(t, 0, "clocks are right\n") }

// Nor do those of different processes.
func TestClockIsShared(t *testing.T) { clock(t, "processes").want(t, 0, "passed on\n") }

func TestClockCallsDoNotExit(t *testing.T) {
	r := clock(t, "calls", "100000")
	r.want(t, 0, "read\n")
	if r.report == nil || r.report.Syscalls > 100 {
		t.Errorf("report %+v: 100000 readings took system calls", r.report)
	}
}

// No guest can change the clock of another.
func TestClockPageIsReadOnly(t *testing.T) { clock(t, "protect").want(t, 0, "protected\n") }

// A C library finds the vDSO in a static and in a dynamic program.
func TestLibraryFindsClocks(t *testing.T) {
	clock(t)
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc; install gcc")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "time.c")
	if err := os.WriteFile(source, []byte(`
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
int main(void) {
	struct timespec t;
	struct timeval tv;
	for (int i = 0; i < 5000; i++)
		if (clock_gettime(CLOCK_MONOTONIC, &t) || clock_gettime(CLOCK_REALTIME, &t) || gettimeofday(&tv, 0) || time(0) < 1000000000)
			return 1;
	puts("found");
	return 0;
}`), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"-static", "-pie"} {
		t.Run(strings.TrimPrefix(link, "-"), func(t *testing.T) {
			program := filepath.Join(dir, "time"+link)
			if out, err := exec.Command(cc, "-O1", link, "-fPIE", "-o", program, source).CombinedOutput(); err != nil {
				t.Skipf("gcc %s: %v: %s; install the C library's development files", link, err, out)
			}
			r := sandbox{}.run(t, program)
			r.want(t, 0, "found\n")
			if r.report == nil || r.report.Syscalls > 200 {
				t.Errorf("report %+v: 20000 readings took system calls", r.report)
			}
		})
	}
}
