package snapfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"golang.org/x/sys/unix"
)

// A child is this program again, told by the environment what to write where.
const (
	childJob  = "SNAPFILE_CHILD"
	childPath = "SNAPFILE_PATH"
)

// child does a child's work and does not return, or returns at once.
func child() {
	job, path := os.Getenv(childJob), os.Getenv(childPath)
	if job == "" {
		return
	}
	kind, arg, _ := strings.Cut(job, ":")
	n, _ := strconv.Atoi(arg)
	switch kind {
	case "step": // dies before its nth step
		passed := 0
		onStep = func(string) {
			if passed == n {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			passed++
		}
		_, err := Write(context.Background(), path, crashImage(2), Options{Workers: 1})
		exitWith(err)
	case "loop": // writes until it is killed
		for seed := uint64(n); ; seed++ {
			if _, err := Write(context.Background(), path, crashImage(seed), Options{}); err != nil {
				exitWith(err)
			}
			fmt.Println(seed)
		}
	case "limit": // may write files of n bytes
		signal.Ignore(unix.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
			exitWith(err)
		}
		_, err := Write(context.Background(), path, crashImage(2), Options{})
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.EFBIG) {
			exitWith(fmt.Errorf("a file too large: %w", err))
		}
		os.Exit(0)
	}
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

// crashImage is 3 MiB that are told by a seed.
func crashImage(seed uint64) *fakeImage {
	img := newFakeImage(Region{Name: "ram", Base: 0, Size: 4 << 20, PageSize: addr.PageSize})
	for page := uint64(0); page < 768; page++ {
		img.put(addr.GPA(page*addr.PageSize), 2*(seed*1000+page))
	}
	return img
}

func startChild(t *testing.T, job, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childJob+"="+job, childPath+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// checkWhole reads a file that must be one of some images, or may be missing.
func checkWhole(t *testing.T, path string, images map[string]*fakeImage) string {
	t.Helper()
	f, err := Open(path, OpenOptions{})
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for name, img := range images {
		if wrong, err := served(f, img); err == nil && !wrong {
			return name
		}
	}
	t.Fatal("the file is whole and holds none of the images")
	return ""
}

// TestKilledAtEveryStep kills a writer before each of its steps. What stood at the
// path is as it was until the rename, and the new file after it; what is left
// beside it has the documented name, and is gone after the next Write.
func TestKilledAtEveryStep(t *testing.T) {
	steps := 0
	onStep = func(string) { steps++ }
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	mustWrite(t, path, crashImage(1), Options{Workers: 1})
	onStep = nil
	if steps < 8 {
		t.Fatalf("%d steps", steps)
	}
	images := map[string]*fakeImage{"old": crashImage(1), "new": crashImage(2)}
	for _, before := range []string{"", "old"} {
		seen := map[string]int{}
		for n := range steps + 1 {
			removeAll(t, path)
			if before == "old" {
				mustWrite(t, path, crashImage(1), Options{Sync: SyncNone})
			}
			cmd := startChild(t, fmt.Sprint("step:", n), path)
			err := cmd.Run()
			if killed := err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL; killed != (n < steps) {
				t.Fatalf("step %d of %d: %v", n, steps, err)
			}
			got := checkWhole(t, path, images)
			if got != before && got != "new" {
				t.Fatalf("killed before step %d of %d: the file is %q, was %q", n, steps, got, before)
			}
			seen[got]++
			for _, name := range filesIn(t, dir) {
				if name != "x" && !(strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)) {
					t.Fatalf("killed before step %d: %q is left", n, name)
				}
			}
			mustWrite(t, filepath.Join(dir, "another"), newFakeImage(), Options{Sync: SyncNone})
			removeAll(t, filepath.Join(dir, "another"))
			if left := filesIn(t, dir); len(left) > 1 || len(left) == 1 && left[0] != "x" {
				t.Fatalf("killed before step %d: after the next Write there are %q", n, left)
			}
		}
		if seen[before] != steps-1 || seen["new"] != 2 { // killed before the directory's fsync, and not at all
			t.Errorf("before %q: %v in %d steps", before, seen, steps)
		}
	}
}

// TestKilledAtAnyTime kills writers that replace one file again and again, while
// another writes beside them.
func TestKilledAtAnyTime(t *testing.T) {
	rounds := 8
	if *soak {
		rounds = 800
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	images := map[string]*fakeImage{}
	for seed := range uint64(64) {
		images[fmt.Sprint(seed)] = crashImage(seed)
	}
	found := 0
	for range rounds {
		cmd := startChild(t, fmt.Sprint("loop:", rand.IntN(8)), path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		if _, err := Write(t.Context(), filepath.Join(dir, "mine"), crashImage(3), Options{}); err != nil {
			t.Error(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		if f, err := Open(path, OpenOptions{}); err == nil {
			if err := f.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			f.Close()
			found++
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if got := checkWhole(t, filepath.Join(dir, "mine"), images); got != "3" {
			t.Fatalf("the other writer's file is %q", got)
		}
	}
	if _, err := RemoveStale(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range filesIn(t, dir) {
		if name != "x" && name != "mine" {
			t.Errorf("%q is left", name)
		}
	}
	t.Logf("%d of %d writers had come to an end once", found, rounds)
}

// TestLivingWritersKeepTheirTemporaries: RemoveStale leaves alone what is being
// written, by this process or another.
func TestLivingWritersKeepTheirTemporaries(t *testing.T) {
	dir := t.TempDir()
	tmp, err := createTemporary(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.discard()
	lookalike := filepath.Join(dir, tempPrefix+"notes"+tempSuffix)
	if err := os.WriteFile(lookalike, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := RemoveStale(dir); n != 0 || err != nil {
		t.Fatalf("%d were removed, %v", n, err)
	}
	if err := tmp.f.Close(); err != nil { // as the kernel does for who is killed
		t.Fatal(err)
	}
	tmp.f = nil
	if n, err := RemoveStale(dir); n != 1 || err != nil {
		t.Fatalf("%d were removed, %v", n, err)
	}
	if left := filesIn(t, dir); len(left) != 1 || left[0] != filepath.Base(lookalike) {
		t.Fatalf("left: %q", left)
	}
}

// TestEveryFailingStep has each step of a write fail in turn, as on a full disk.
// The error has a name, nothing is left, and what was there is as it was.
func TestEveryFailingStep(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	images := map[string]*fakeImage{"old": crashImage(1), "new": crashImage(2)}
	for n := 0; ; n++ {
		mustWrite(t, path, crashImage(1), Options{Sync: SyncNone})
		run := inject.Start(inject.Plan{Match: inject.Only("snapfile: "), From: n, Until: n + 1, Errno: unix.ENOSPC})
		err := run.During(func() error {
			_, err := Write(t.Context(), path, crashImage(2), Options{})
			return err
		})
		if run.Failures() == 0 {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("%v: %v", run, err)
		}
		want := "old"
		if strings.Contains(run.String(), "directory") {
			want = "new"
		}
		if got := checkWhole(t, path, images); got != want {
			t.Fatalf("%v: the file is %q", run, got)
		}
		if left := filesIn(t, dir); len(left) != 1 {
			t.Fatalf("%v: left %q", run, left)
		}
	}
}

// TestDiskFull writes to a disk that is too small, and beyond the limit of the
// size of files.
func TestDiskFull(t *testing.T) {
	t.Run("limit", func(t *testing.T) {
		dir := t.TempDir()
		for _, n := range []int{1 << 20, 100} {
			if err := startChild(t, fmt.Sprint("limit:", n), filepath.Join(dir, "x")).Run(); err != nil {
				t.Error(err)
			}
		}
		if left := filesIn(t, dir); len(left) != 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mount("snapfile", dir, "tmpfs", 0, "size=2m"); err != nil {
			t.Skipf("needs to mount a tmpfs: %v", err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		path := filepath.Join(dir, "x")
		small := newFakeImage(crashImage(0).regions...)
		small.put(0, 1)
		mustWrite(t, path, small, Options{})
		if _, err := Write(t.Context(), path, crashImage(2), Options{}); !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a full disk: %v", err)
		}
		if left := filesIn(t, dir); len(left) != 1 {
			t.Errorf("left: %q", left)
		}
		checkSame(t, mustOpen(t, path), small)
	})
}
