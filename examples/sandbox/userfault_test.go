//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// userfaultModes are what testdata/userfault.c does: the answers of the calls; a
// copier beside fork, remap, remove and unmap, in parent and child, every byte
// compared; signals that come while a page is waited for; and processes that nobody
// ever answers, killed.
var userfaultModes = []string{"calls", "family", "signals", "deaths"}

// The program finds in the sandbox what it finds under Linux.
func TestUserfault(t *testing.T) {
	program := guest(t, "userfault")
	for _, mode := range userfaultModes {
		t.Run(mode, func(t *testing.T) {
			want := underLinux(t, program, mode)
			onVCPUs(t, func(t *testing.T, s sandbox) { s.run(t, program, mode).want(t, 0, want) })
		})
	}
}

// Arguments at random get an errno, and nothing else comes of them.
func TestUserfaultAtRandom(t *testing.T) {
	program := guest(t, "userfault")
	for _, seed := range []string{"a", "b", "c", "d"} {
		t.Run(seed, func(t *testing.T) {
			t.Parallel()
			sandbox{}.run(t, program, "wild", seed).want(t, 0, "right\n")
		})
	}
}

// underLinux returns what the program says on the host, if that lets it use
// userfaultfd.
func underLinux(t *testing.T, program, mode string) string {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd: %v; the host's answers cannot be compared: run as root, or set vm.unprivileged_userfaultfd", errno)
	}
	unix.Close(int(fd))
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, mode).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("under Linux: %v: %s", err, out)
	}
	return string(out)
}
