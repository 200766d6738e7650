//go:build linux && amd64

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// within runs the VMM in this process: what it leaves behind is found at the end of
// all tests.
func within(args ...string) ran {
	var out, errs bytes.Buffer
	status := run(args, nil, &out, &errs)
	return ran{status, out.String(), errs.String()}
}

// snapshotOf has a guest write its files, the full one and increments.
func snapshotOf(t *testing.T, args ...string) (file string) {
	t.Helper()
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	file = filepath.Join(t.TempDir(), "guest.snap")
	got := within(append([]string{"-snapshot", file, "-mem", "16M"}, args...)...)
	if got.status != statusOK || !strings.HasSuffix(got.stdout, "\nok\n") || got.stderr != "" {
		t.Fatal(got)
	}
	return file
}

func mustRun(t *testing.T, want string, args ...string) {
	t.Helper()
	got := within(args...)
	if got.status != statusOK || !strings.Contains(got.stdout, want) || got.stderr != "" {
		t.Errorf("%q: %v", args, got)
	}
}

// TestSnapshotFiles writes files of a running guest by each tracker, and runs the
// guest of each file in every way.
func TestSnapshotFiles(t *testing.T) {
	for name, flags := range map[string][]string{
		"live": nil, "live and zstd": {"-compress"}, "log": {"-tracker", "log"}, "ring": {"-tracker", "ring"}, "wp": {"-tracker", "wp"},
		"auto and zstd": {"-tracker", "auto", "-compress"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "wp" {
				testutil.RequireUFFD(t, testutil.UFFDWPAsync)
			}
			file := snapshotOf(t, append(flags, "-increments", "2")...)
			for i, f := range []string{file, file + ".1", file + ".2"} {
				files := "1 file\n"
				if i > 0 {
					files = fmt.Sprintf("%d files\n", i+1)
				}
				mustRun(t, "ok, "+files, "verify", f)
				mustRun(t, "\nok\n", "-restore", f)
			}
			mustRun(t, "\nok\n", "-restore", file+".2", "-lazy")
			if name != "live" {
				return
			}
			mustRun(t, "replayed", "-restore", file, "-lazy", "-clones", "3")
			mustRun(t, "\nok\n", "-restore", file+".2", "-clones", "3")
			mustRun(t, "increment to", "inspect", file+".1")
			checkInspect(t, file)
			checkJSON(t, file)
			// The processes of real users, who look at their exit status.
			got := vmm(t, "", "-restore", file+".1", "-lazy", "-clones", "2")
			if got.status != statusOK || got.stderr != "" {
				t.Error(got)
			}
		})
	}
}

func checkInspect(t *testing.T, file string) {
	t.Helper()
	got := within("inspect", "-json", file+".1")
	var info struct {
		Path    string `json:"path"`
		Regions []struct {
			Name string `json:"name"`
			Data uint64 `json:"data_pages"`
		} `json:"regions"`
		Parent *struct {
			Path string `json:"path"`
		} `json:"parent"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &info); err != nil || got.status != statusOK {
		t.Fatal(err, got)
	}
	if info.Path != file+".1" || info.Parent == nil || info.Parent.Path != file || len(info.Regions) != 4 {
		t.Errorf("%+v", info)
	}
}

// checkJSON has the runs on files tell of themselves by -json.
func checkJSON(t *testing.T, file string) {
	t.Helper()
	var r struct {
		report
		Memory uint64       `json:"memory_bytes"`
		Files  []fileResult `json:"files"`
		Runs   []lazyResult `json:"lazy_restores"`
	}
	decode := func(args ...string) {
		t.Helper()
		got := within(args...)
		if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || got.status != statusOK || !strings.Contains(got.stderr, "\nok\n") {
			t.Fatal(err, got)
		}
		if r.OK == nil || !*r.OK || r.Errors == nil || *r.Errors != 0 || r.Checked == 0 || r.Memory != 16<<20 {
			t.Errorf("%q: %v", args, got)
		}
	}
	decode("-restore", file, "-lazy", "-clones", "2", "-json", "-")
	if len(r.Runs) != 2 || *r.Clones != 2 || r.Lazy["first_exit_us"] <= 0 {
		t.Errorf("%+v", r)
	}
	decode("-snapshot", file, "-mem", "16M", "-tracker", "log", "-increments", "1", "-json", "-")
	if len(r.Files) != 2 || r.Files[0].Path != file || r.Files[0].Data == 0 || r.Files[0].Pause <= 0 {
		t.Errorf("%+v", r)
	}
	got := within("-restore", filepath.Join(t.TempDir(), "none"), "-json", "-")
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || *r.OK || got.status != statusFailed || !strings.Contains(got.stderr, "no such file") {
		t.Error(err, got)
	}
}

// TestFullDisk: the guest runs on and checks itself, and no file is left.
func TestFullDisk(t *testing.T) {
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("no file system of 4 MiB: %v; run as root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for _, by := range []string{"live", "log"} {
		got := within("-snapshot", filepath.Join(dir, "x.snap"), "-mem", "16M", "-tracker", by)
		if got.status != statusFailed || !strings.Contains(got.stderr, "no space") || strings.Contains(got.stdout, "ok") {
			t.Error(got)
		}
		if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	file := filepath.Join(dir, "none", "x.snap")
	if got := within("-snapshot", file, "-mem", "16M"); got.status != statusFailed || !strings.Contains(got.stderr, "none") {
		t.Error(got)
	}
}
