//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/testutil"
)

// The tests run the sandbox as a user would, as a process of its own with its
// own stdin and exit status: this test binary again, which is the sandbox when
// beSandbox is in its environment.
const (
	beSandbox    = "SANDBOX_TEST_RUN"
	processesEnv = "SANDBOX_TEST_PROCESSES"

	// statusLeaked is what the child exits with if anything is left running.
	statusLeaked = 99
)

func TestMain(m *testing.M) {
	if os.Getenv(beSandbox) != "" {
		os.Exit(runAsChild())
	}
	testutil.Main(m)
}

// runAsChild is main with its work checked: the frames' counts before
// everything is closed, goroutines and descriptors after.
func runAsChild() int {
	if n, err := strconv.Atoi(os.Getenv(processesEnv)); err == nil {
		maxProcesses = n
	}
	os.Unsetenv(beSandbox)
	os.Unsetenv(processesEnv)
	afterRun = func(m *machine) error { return m.memory.Check() }
	left := testutil.Leftovers()
	status := run(os.Args[1:], os.Stdout, os.Stderr)
	leaks := left()
	if len(leaks) == 0 {
		return status
	}
	fmt.Fprintf(os.Stderr, "left behind:\n%s\n", strings.Join(leaks, "\n"))
	return statusLeaked
}

// ran is how a run of the sandbox went.
type ran struct {
	status         int
	stdout, stderr string
	report         *report // nil if no program ran
}

// sandbox is one run to be.
type sandbox struct {
	flags []string
	stdin io.Reader
	env   []string
}

// hangs is how long a run may take: far longer than any does on a machine that has
// much else to do, since it is for those that never end.
const hangs = 4 * time.Minute

// run runs the sandbox with -json and wants no frame leaked.
func (s sandbox) run(t *testing.T, program ...string) ran {
	t.Helper()
	testutil.RequireKVM(t)
	file := filepath.Join(t.TempDir(), "report.json")
	args := append(append([]string{"-json", file}, s.flags...), "--")
	r := s.start(t, append(args, program...))
	if raw, err := os.ReadFile(file); err == nil {
		r.report = new(report)
		if err := json.Unmarshal(raw, r.report); err != nil {
			t.Errorf("-json wrote %q: %v", raw, err)
		}
		if r.report.FramesLeaked != 0 {
			t.Errorf("%d frames leaked", r.report.FramesLeaked)
		}
		if r.report.ExitStatus != r.status {
			t.Errorf("exit_status is %d, the sandbox exited with %d", r.report.ExitStatus, r.status)
		}
	}
	return r
}

// start runs the sandbox with exactly these arguments.
func (s sandbox) start(t *testing.T, args []string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	cmd := s.command(ctx, args)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("sandbox %q did not end in %v; stdout %.400q, stderr %.2000s", args, hangs, &stdout, &stderr)
	}
	if cmd.ProcessState.ExitCode() == statusLeaked {
		t.Errorf("the sandbox leaked: %s", &stderr)
	}
	return ran{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

func (s sandbox) command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	// The race detector would have each of them sleep for a second at its end.
	cmd.Env = append(os.Environ(), beSandbox+"=1", "GORACE=atexit_sleep_ms=0")
	if os.Getenv("TMPDIR") != "" {
		cmd.Env = append(cmd.Env, "TMPDIR=/tmp") // all that a guest may write to
	}
	cmd.Env = append(cmd.Env, s.env...)
	cmd.Stdin = s.stdin
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// want compares a run with what it should have done.
func (r ran) want(t *testing.T, status int, stdout string) {
	t.Helper()
	if r.status != status || r.stdout != stdout {
		t.Errorf("status %d, stdout %.400q; want %d, %.400q; stderr %.400s", r.status, r.stdout, status, stdout, r.stderr)
	}
}

// guest returns the path of a program of testdata, ready to be executed.
func guest(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name+".elf"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// oneLine wants stderr to be a single line that contains part.
func (r ran) oneLine(t *testing.T, part string) {
	t.Helper()
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasSuffix(r.stderr, "\n") || !strings.Contains(r.stderr, part) {
		t.Errorf("stderr is %q, want one line with %q", r.stderr, part)
	}
}
