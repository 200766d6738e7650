//go:build linux && amd64

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// openTerminal returns both ends of a pseudo-terminal.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals: %v; mount devpts", err)
	}
	t.Cleanup(func() { ours.Close() })
	fd := int(ours.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// until reads what a terminal shows until it has shown something.
func until(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var seen strings.Builder
	b := make([]byte, 256)
	for !strings.Contains(seen.String(), want) {
		n, err := r.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, &seen)
		}
		seen.Write(b[:n])
	}
}

// TestTerminal has the guest read a terminal as it is typed on, Ctrl-C included, and
// Ctrl-A x end it; the terminal is as it was then.
func TestTerminal(t *testing.T) {
	testutil.RequireKVM(t)
	ours, theirs := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	c := command(t, "-kernel", kernels(t)["bzImage"], "-append", "echo spin", "-mem", "64M")
	var errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = theirs, theirs, &errs
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, ours, "say: ")
	// The kernel's console sends a Ctrl-C back as it is; a terminal would show ^C, and end
	// the VMM.
	if _, err := ours.Write([]byte("a\x03b\x01\x01c\n")); err != nil {
		t.Fatal(err)
	}
	until(t, ours, "a\x03b\x01c")
	if _, err := ours.Write([]byte("\x01x")); err != nil {
		t.Fatal(err)
	}
	got := finish(t, c, new(bytes.Buffer), &errs)
	if got.status != statusOK || got.stderr != "" {
		t.Error(got)
	}
	after, err := unix.IoctlGetTermios(int(theirs.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was %+v and is %+v, %v", before, after, err)
	}
}

// TestProgressOnATerminal has bars where stderr is a terminal, and the result on
// stdout all the same.
func TestProgressOnATerminal(t *testing.T) {
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	file := filepath.Join(t.TempDir(), "guest.snap")
	for _, x := range []struct{ args, bars []string }{
		{[]string{"-quick", "-mem", "16M", "-live", "16M", "-samples", "5", "-idle", "2", "-clones", "1"}, []string{"idle clones", "live: snapshot 3", "restore lazily"}},
		{[]string{"-snapshot", file, "-mem", "16M"}, []string{"fill", "write " + file}},
		{[]string{"verify", file}, []string{"verify"}},
		{[]string{"-restore", file}, []string{"restore"}},
		{[]string{"-restore", file, "-lazy"}, []string{"restore lazily"}},
	} {
		ours, theirs := openTerminal(t)
		c := command(t, x.args...)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, theirs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		shown := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(ours) // EIO once the other end is closed
			shown <- string(b)
		}()
		got := finish(t, c, &out, new(bytes.Buffer))
		seen := <-shown
		if got.status != statusOK || !strings.Contains(got.stdout, "ok") {
			t.Errorf("%q: %v\nterminal: %q", x.args, got, seen)
		}
		for _, bar := range x.bars {
			if !strings.Contains(seen, bar) {
				t.Errorf("%q: no %q on the terminal: %q", x.args, bar, seen)
			}
		}
	}
}
