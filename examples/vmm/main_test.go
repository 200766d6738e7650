//go:build linux && amd64

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/testutil"
)

// The tests run the VMM as a user would, as a process of its own: this test
// binary again, which is the VMM when beVMM is in its environment.
const (
	beVMM = "VMM_TEST_RUN"

	// statusLeaked is what the child exits with if anything is left.
	statusLeaked = 99

	patience = 2 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(beVMM) != "" {
		os.Exit(runAsChild())
	}
	testutil.Main(m)
}

// runAsChild is main, with what is left behind looked for: descriptors,
// mappings of the host's, and goroutines.
func runAsChild() int {
	before, left := holdings(), testutil.Leftovers()
	status := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	leaks := left()
	if more := holdings().since(before); more != "" {
		leaks = append(leaks, more)
	}
	if len(leaks) == 0 {
		return status
	}
	fmt.Fprintf(os.Stderr, "left behind:\n%s\n", strings.Join(leaks, "\n"))
	return statusLeaked
}

// ran is how a run of the VMM went.
type ran struct {
	status         int
	stdout, stderr string
}

func (r ran) String() string {
	return fmt.Sprintf("exit status %d\nstdout: %s\nstderr: %s", r.status, r.stdout, r.stderr)
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe, args...)
	// The race detector would have it sleep for a second at its end.
	c.Env = append(os.Environ(), beVMM+"=1", "GORACE=atexit_sleep_ms=0")
	return c
}

// vmm runs the VMM to its end.
func vmm(t *testing.T, stdin string, args ...string) ran {
	t.Helper()
	c := command(t, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr, c.Stdin = &out, &errs, strings.NewReader(stdin)
	return finish(t, c, &out, &errs)
}

func finish(t *testing.T, c *exec.Cmd, out, errs *bytes.Buffer) ran {
	t.Helper()
	if c.Process == nil {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	stop := time.AfterFunc(patience, func() { c.Process.Kill() })
	defer stop.Stop()
	err := c.Wait()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		t.Fatal(err)
	}
	return ran{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// report is what a reader of the JSON object knows of.
type report struct {
	OK        *bool    `json:"ok"`
	Errors    *uint64  `json:"selfcheck_errors"`
	Clones    *int     `json:"clones"`
	FirstExit *float64 `json:"clone_first_exit_us_median"`
	RawExit   *float64 `json:"raw_clone_first_exit_us_median"`
	Missed    *uint64  `json:"dirty_missed"`
	Spurious  *uint64  `json:"dirty_spurious"`
	Private   *float64 `json:"private_kib_per_clone"`
	Checked   uint64   `json:"pages_checked"`
	Dirty     uint64   `json:"dirty_pages"`
	Steps     []row    `json:"steps"`

	Snapshots []map[string]float64 `json:"snapshots"`
	Lazy      map[string]float64   `json:"lazy_restore"`
}

func (r *report) check(t *testing.T, clones int) {
	t.Helper()
	// The private memory of the whole process is what it is: with few clones, what the
	// garbage collector gave back meanwhile may be more than they cost.
	if r.OK == nil || r.Errors == nil || r.Clones == nil || r.FirstExit == nil || r.RawExit == nil || r.Missed == nil || r.Spurious == nil || r.Private == nil {
		t.Fatalf("a field is missing: %+v", r)
	}
	if !*r.OK || *r.Errors != 0 || *r.Missed != 0 || *r.Clones != clones {
		t.Errorf("ok %v, selfcheck_errors %d, dirty_missed %d, clones %d", *r.OK, *r.Errors, *r.Missed, *r.Clones)
	}
	if *r.FirstExit <= 0 || *r.RawExit <= 0 || *r.Private == 0 || r.Checked == 0 || r.Dirty == 0 || len(r.Steps) < 8 {
		t.Errorf("something was not measured: %+v", r)
	}
	if len(r.Snapshots) != snapshots {
		t.Errorf("%d live snapshots", len(r.Snapshots))
	}
	for i, s := range r.Snapshots {
		if s["pause_us"] <= 0 || s["raw_arm_us"] <= 0 || s["pages_armed"] == 0 || s["pages_copied"] == 0 || s["dirty_runs"] == 0 {
			t.Errorf("snapshot %d: %v", i+1, s)
		}
	}
	if r.Lazy["first_exit_us"] <= 0 || r.Lazy["faults"] == 0 || r.Lazy["replayed_pages"] == 0 {
		t.Errorf("lazy restore: %v", r.Lazy)
	}
	for _, s := range r.Steps {
		for _, x := range []spread{s.Ours, s.Raw} {
			if x.Low <= 0 || x.Low > x.Median || x.Median > x.High {
				t.Errorf("%s: %+v", s.Name, x)
			}
		}
	}
}

func TestBuiltInGuest(t *testing.T) {
	testutil.RequireKVM(t)
	got := vmm(t, "", "-quick", "-json", "-")
	if got.status != statusOK {
		t.Fatal(got)
	}
	d := json.NewDecoder(strings.NewReader(got.stdout))
	var r report
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%v\n%v", err, got)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("something follows the object: %v", got)
	}
	r.check(t, 3)
	for _, want := range []string{"clone to first exit", "harvest by log", "harvest by ring", "add a region", "remove it", "discard", "save", "seal", "\nok\n"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("the table on stderr has no %q: %s", want, got.stderr)
		}
	}
}

func TestBuiltInGuestWithFlags(t *testing.T) {
	testutil.RequireKVM(t)
	file := filepath.Join(t.TempDir(), "out.json")
	got := vmm(t, "", "-quick", "-mem", "32M", "-live", "16M", "-clones", "1", "-idle", "24", "-seed", "99", "-json", file)
	if got.status != statusOK || !strings.Contains(got.stdout, "clone to first exit") || got.stderr != "" {
		t.Fatal(got)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	r.check(t, 1)
}

func TestBadFlags(t *testing.T) {
	dir := t.TempDir()
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"-nonsense"}, "nonsense"},
		{[]string{"rest"}, `"rest"`},
		{[]string{"-mem", "0"}, "-mem"},
		{[]string{"-mem", "12X"}, "-mem"},
		{[]string{"-mem", ""}, "-mem"},
		{[]string{"-mem", "1M"}, "16 MiB"},
		{[]string{"-mem", "16777217"}, "whole pages"},
		{[]string{"-mem", "99999999999T"}, "-mem"},
		{[]string{"-clones", "0"}, "-clones"},
		{[]string{"-clones", "-1"}, "-clones"},
		{[]string{"-clones", "65"}, "-clones"},
		{[]string{"-idle", "1000000"}, "-idle"},
		{[]string{"-samples", "4"}, "-samples"},
		{[]string{"-initrd", "x"}, "-kernel"},
		{[]string{"-cpus", "2"}, "-kernel"},
		{[]string{"-kernel", ""}, "-kernel"},
		{[]string{"-kernel", "x", "-cpus", "0"}, "-cpus 0"},
		{[]string{"-kernel", "x", "-cpus", "1000"}, "-cpus 1000"},
		{[]string{"-kernel", "x", "-mem", "4K"}, "-mem"},
		{[]string{"-kernel", "x", "-json", "-"}, "-json"},
		{[]string{"-kernel", "x", "-patience", "-1s"}, "-patience"},
		{[]string{"-kernel", "x", "-restore", "y"}, "-restore"},
		{[]string{"-snapshot", "x", "-restore", "y"}, "-restore and -snapshot"},
		{[]string{"-snapshot", ""}, "-snapshot is empty"},
		{[]string{"-snapshot", "x", "-lazy"}, "-lazy"},
		{[]string{"-snapshot", "x", "-increments", "64"}, "-increments 64"},
		{[]string{"-snapshot", "x", "-tracker", "nonsense"}, "-tracker nonsense"},
		{[]string{"-tracker", "log"}, "-snapshot"},
		{[]string{"-restore", "x", "-mem", "64M"}, "-mem"},
		{[]string{"-restore", "x", "-clones", "0"}, "-clones"},
		{[]string{"-lazy"}, "-restore"},
		{[]string{"-compress"}, "-snapshot"},
		{[]string{"-live", "1K"}, "-live"},
		{[]string{"inspect"}, "one file"},
		{[]string{"inspect", "-quick", "x"}, "quick"},
		{[]string{"verify", "x", "y"}, "one file"},
	} {
		got := vmm(t, "", x.args...)
		if got.status != statusUsage || got.stdout != "" || !strings.Contains(got.stderr, x.want) || !strings.Contains(got.stderr, "vmm -h") {
			t.Errorf("%q: %v", x.args, got)
		}
	}
	got := vmm(t, "", "-json", filepath.Join(dir, "none", "out.json"))
	if got.status != statusFailed || !strings.Contains(got.stderr, "-json") {
		t.Errorf("a file that cannot be written: %v", got)
	}
	got = vmm(t, "", "-h")
	if got.status != statusOK || !strings.Contains(got.stdout, "-kernel FILE") || got.stderr != "" {
		t.Errorf("-h: %v", got)
	}
}

// TestHelpNamesEveryFlag has each flag in the help, and no other.
func TestHelpNamesEveryFlag(t *testing.T) {
	for _, name := range []string{"mem", "clones", "idle", "samples", "seed", "quick", "json", "live", "dir", "snapshot", "increments", "tracker", "compress", "restore", "lazy", "kernel", "initrd", "append", "cpus", "patience"} {
		if !strings.Contains(usage, "\n  -"+name+" ") {
			t.Errorf("-h does not tell of -%s", name)
		}
	}
}

// TestInterrupted ends the VMM in the middle of its guest.
func TestInterrupted(t *testing.T) {
	testutil.RequireKVM(t)
	got := interrupted(t, func(pid int) bool { return hasMapped(pid, "memfd:data") }, "-mem", "1G", "-json", "-")
	var r report
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || r.OK == nil || *r.OK {
		t.Errorf("the object of an interrupted run: %v, %v", err, got)
	}
	if got.status != statusInterrupted || !strings.Contains(got.stderr, "interrupted") || strings.Contains(got.stderr, "left behind") {
		t.Error(got)
	}
}
