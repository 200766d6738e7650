//go:build linux && amd64

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

// Signals' actions, with and without the code that answers rt_sigaction in ring
// 3, which -trace turns off.
func TestActions(t *testing.T) {
	program := guest(t, "actions")
	t.Run("ring 3", func(t *testing.T) {
		t.Parallel()
		for range times() {
			sandbox{}.run(t, program).want(t, 0, "actions are right\n")
		}
	})
	t.Run("trace", func(t *testing.T) {
		t.Parallel()
		sandbox{flags: []string{"-trace"}}.run(t, program).want(t, 0, "actions are right\n")
	})
	t.Run("unmap", func(t *testing.T) {
		t.Parallel()
		sandbox{}.run(t, program, "unmap").want(t, 0, "unmapped\n")
	})
}

func TestActionsUnderLinux(t *testing.T) {
	// A signal that this process was started ignoring (by nohup, or by a shell that put
	// it in the background) would be ignored in the program too; one with a handler
	// begins there with its default.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(ignored)
	out, err := exec.CommandContext(t.Context(), guest(t, "actions")).Output()
	if err != nil || string(out) != "actions are right\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// Where the host lets ring 3 have SYSCALL, 4 000 calls of rt_sigaction are no
// exits; -trace sees each.
func TestActionsCostNoExit(t *testing.T) {
	program := guest(t, "actions")
	r := sandbox{}.run(t, program, "many")
	r.want(t, 0, "many\n")
	traced := sandbox{flags: []string{"-trace"}}.run(t, program, "many")
	traced.want(t, 0, "many\n")
	if traced.report.Syscalls < 4000 {
		t.Errorf("with -trace %d calls were seen, want 4000", traced.report.Syscalls)
	}
	if entersInRing3(t) && r.report.Syscalls > 40 {
		t.Errorf("%d calls were exits", r.report.Syscalls)
	}
}

// entersInRing3 asks a platform of its own.
func entersInRing3(t *testing.T) bool {
	t.Helper()
	testutil.RequireKVM(t)
	s, err := kvm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p, err := kvm.NewPlatform(s, m, kvm.PlatformOptions{SyscallEntry: kernel.SyscallEntry})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return p.SyscallEntry() != 0
}
