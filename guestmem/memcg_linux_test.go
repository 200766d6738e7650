package guestmem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// The memory that the cgroup of the test below has.
const cgroupLimit = 96 << 20

// inCgroupEnv names the cgroup that a child process of the test enters.
const inCgroupEnv = "GUESTMM_TEST_CGROUP"

// memoryCgroup makes a memory cgroup whose processes get errors, where they can
// be given, instead of being killed; it skips the test where it may not.
//
// The runtime of the process needs memory too, and a fault of its own waits for it
// where an access of guest memory is refused. So whoever watches the cgroup gives
// it a little more each time that it is full.
func memoryCgroup(t *testing.T) (dir string, watch func(done <-chan struct{})) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a memory cgroup needs root")
	}
	write := func(dir, file, text string) error {
		return os.WriteFile(filepath.Join(dir, file), []byte(text), 0)
	}
	const v1 = "/sys/fs/cgroup/memory"
	root, limit, usage := "/sys/fs/cgroup", "memory.max", "memory.current"
	if _, err := os.Stat(filepath.Join(v1, "cgroup.procs")); err == nil {
		root, limit, usage = v1, "memory.limit_in_bytes", "memory.usage_in_bytes"
	} else if b, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control")); err != nil || !strings.Contains(string(b), "memory") {
		t.Skip("no memory cgroups here: neither /sys/fs/cgroup/memory, nor memory in /sys/fs/cgroup/cgroup.subtree_control")
	}
	dir = filepath.Join(root, fmt.Sprintf("guestmm-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("making a memory cgroup: %v", err)
	}
	t.Cleanup(func() {
		for range 100 { // until the kernel has seen that the child is gone
			if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("the cgroup %s cannot be removed", dir)
	})
	if err := write(dir, limit, strconv.Itoa(cgroupLimit)); err != nil {
		t.Skipf("limiting a memory cgroup: %v", err)
	}
	if root == v1 {
		if err := write(dir, "memory.oom_control", "1"); err != nil {
			t.Skipf("a memory cgroup without killer: %v", err)
		}
	}
	return dir, func(done <-chan struct{}) {
		size, full := cgroupLimit, 0
		for mustDo(t, write(dir, limit, strconv.Itoa(size))); ; {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			var used int
			if b, err := os.ReadFile(filepath.Join(dir, usage)); err == nil {
				used, _ = strconv.Atoi(strings.TrimSpace(string(b)))
			}
			if full++; used < size-(1<<20) {
				full = 0
			}
			if full >= 5 && size < 2*cgroupLimit {
				size, full = size+(8<<20), 0
				if err := write(dir, limit, strconv.Itoa(size)); err != nil {
					t.Errorf("raising the limit: %v", err)
				}
			}
		}
	}
}

// R10: where a memory cgroup has no more, an access is ErrNoMemory, what was
// done before it counts, and all works again when there is memory.
func TestR10MemoryCgroupIsFull(t *testing.T) {
	if dir := os.Getenv(inCgroupEnv); dir != "" {
		fillCgroup(t, dir)
		return
	}
	if racing {
		t.Skip("the race detector's own memory would wait for ever in a cgroup that is full; run it without -race")
	}
	dir, watch := memoryCgroup(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous, BackingTemplate} {
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestR10MemoryCgroupIsFull$", "-test.v")
		cmd.Env = append(os.Environ(), inCgroupEnv+"="+dir, "GUESTMM_TEST_BACKING="+strconv.Itoa(int(backing)))
		ended := make(chan struct{})
		watched := inBackground(func() { watch(ended) })
		out, err := cmd.CombinedOutput()
		close(ended)
		<-watched
		if err != nil || !strings.Contains(string(out), "ended well") {
			t.Errorf("%v: the process in the cgroup: %v\n%s", backing, err, out)
		}
	}
}

// fillCgroup is the child: it enters the cgroup and uses a region up.
func fillCgroup(t *testing.T, dir string) {
	if _, err := os.Stat(filepath.Join(dir, "memory.oom_control")); err != nil {
		// A cgroup of version 2 kills, but not this process; the kernel then
		// answers with an error too.
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
			fmt.Printf("ended well: nothing was tested: %v\n", err)
			return
		}
	}
	n, err := strconv.Atoi(os.Getenv("GUESTMM_TEST_BACKING"))
	mustDo(t, err)
	mustDo(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0))
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = 7
	}
	fill := func(size uint64) {
		m := newPhysOf(t, Backing(n), size)
		done := addr.GPA(0)
		var err error
		for err == nil && uint64(done) < size {
			var k int
			k, err = m.WriteAt(p, done)
			done += addr.GPA(k)
		}
		var one [1]byte
		if uint64(done) < size {
			if !errors.Is(err, ErrNoMemory) {
				t.Errorf("after %d MiB: %v, want ErrNoMemory", done>>20, err)
			}
			for at := addr.GPA(0); at < done; at += page {
				if k, err := m.ReadAt(one[:], at); k != 1 || err != nil || one[0] != 7 {
					t.Fatalf("what was written at %v reads %d, %v", at, one[0], err)
				}
			}
			// Half is given back: there is room again.
			mustDo(t, m.Discard(0, uint64(done)/2/page*page))
			if _, err := m.WriteAt(p, done); err != nil {
				t.Errorf("after a discard: %v", err)
			}
		}
		mustDo(t, m.Close())
		fmt.Printf("%d of %d MiB were written\n", done>>20, size>>20)
	}
	testutil.Within(t, 50*time.Second, func() {
		fill(8 << 20) // what the runtime needs on the way, it has after this
		fill(4 * cgroupLimit)
		fill(8 << 20)
	})
	if !t.Failed() {
		fmt.Println("ended well")
	}
}

// newPhysOf returns a memory with one region, or a clone with one.
func newPhysOf(t *testing.T, backing Backing, size uint64) *Memory {
	t.Helper()
	m, err := NewMemory(MemoryOptions{})
	mustDo(t, err)
	o := RegionOptions{Size: size, Backing: backing}
	if backing == BackingTemplate {
		o.Backing = BackingMemfd
	}
	mustAdd(t, m, o)
	if backing == BackingTemplate {
		tmpl, err := m.Seal()
		mustDo(t, err)
		m, err = tmpl.Clone(CloneOptions{})
		mustDo(t, err)
		mustDo(t, tmpl.Close())
	}
	return m
}
