//go:build linux && amd64

package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// snapshotOf has a guest write its files, the full one and increments.
func snapshotOf(t *testing.T, args ...string) (file string) {
	t.Helper()
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	file = filepath.Join(t.TempDir(), "guest.snap")
	got := vmm(t, "", append([]string{"-snapshot", file, "-mem", "16M"}, args...)...)
	if got.status != statusOK || !strings.HasSuffix(got.stdout, "\nok\n") || got.stderr != "" {
		t.Fatal(got)
	}
	return file
}

func mustRun(t *testing.T, want string, args ...string) {
	t.Helper()
	got := vmm(t, "", args...)
	if got.status != statusOK || !strings.Contains(got.stdout, want) || got.stderr != "" {
		t.Errorf("%q: %v", args, got)
	}
}

// TestSnapshotFiles writes files of a running guest, and runs the guest of each in
// every way.
func TestSnapshotFiles(t *testing.T) {
	for name, flags := range map[string][]string{"raw": nil, "zstd": {"-compress"}} {
		t.Run(name, func(t *testing.T) {
			file := snapshotOf(t, append(flags, "-increments", "2")...)
			for i, f := range []string{file, file + ".1", file + ".2"} {
				files := "1 file\n"
				if i > 0 {
					files = fmt.Sprintf("%d files\n", i+1)
				}
				mustRun(t, "ok, "+files, "verify", f)
				mustRun(t, "\nok\n", "-restore", f)
				mustRun(t, "\nok\n", "-restore", f, "-lazy")
			}
			mustRun(t, "replayed", "-restore", file, "-lazy", "-clones", "3")
			mustRun(t, "\nok\n", "-restore", file+".2", "-clones", "3")
		})
	}
}

func TestInspect(t *testing.T) {
	file := snapshotOf(t, "-increments", "1")
	mustRun(t, "increment to", "inspect", file+".1")
	got := vmm(t, "", "inspect", "-json", file+".1")
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

// TestDamagedFiles: wherever a bit is flipped, nobody restores the file, and a
// guest that began to run before it was read is not given the damage: it may have
// ended well only if it needed none of it, which the self-check of the whole
// memory and the filling of the rest exclude.
func TestDamagedFiles(t *testing.T) {
	file := snapshotOf(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	at := []int{0, 9, 20, 60, 100, len(whole) - 1, len(whole) - 60}
	for len(at) < 14 {
		if i := rng.IntN(len(whole)); whole[i] != 0 {
			at = append(at, i) // holes are in no index; TestEveryFlippedBit of snapfile has them all
		}
	}
	bad := filepath.Join(t.TempDir(), "bad.snap")
	for _, i := range at {
		b := append([]byte(nil), whole...)
		b[i] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"verify", bad}, {"-restore", bad}, {"-restore", bad, "-lazy"}, {"-restore", bad, "-clones", "2"}} {
			got := vmm(t, "", args...)
			if got.status != statusFailed || strings.Contains(got.stdout, "ok") || strings.Contains(got.stderr, "pages are wrong") || !strings.Contains(got.stderr, "snap") {
				t.Errorf("bit of byte %d of %d, %q: %v", i, len(whole), args, got)
			}
		}
	}
	for _, n := range []int{0, 1, 100, 4096, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(bad, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"verify", bad}, {"inspect", bad}, {"-restore", bad}, {"-restore", bad, "-lazy"}} {
			if got := vmm(t, "", args...); got.status != statusFailed {
				t.Errorf("the first %d bytes of %d, %q: %v", n, len(whole), args, got)
			}
		}
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
	got := vmm(t, "", "-snapshot", filepath.Join(dir, "x.snap"), "-mem", "16M")
	if got.status != statusFailed || !strings.Contains(got.stderr, "no space") || strings.Contains(got.stderr, "are wrong") {
		t.Error(got)
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	file := filepath.Join(dir, "none", "x.snap")
	if got := vmm(t, "", "-snapshot", file, "-mem", "16M"); got.status != statusFailed || !strings.Contains(got.stderr, "none") {
		t.Error(got)
	}
}
