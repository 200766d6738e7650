package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/sys"
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
// it a little more each time that a fault waits, up to twice the limit: a fault
// on guest memory would use that up, and wait for ever.
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
		for range 6000 { // until the kernel has seen that the child is gone
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
	// What some other test may have swapped on would only make each refusal slow.
	// Not every kernel has these files.
	_ = write(dir, "memory.swappiness", "0")
	_ = write(dir, "memory.swap.max", "0")
	read := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, file))
		return string(b)
	}
	return dir, func(done <-chan struct{}) {
		size, full := cgroupLimit, 0
		for mustDo(t, write(dir, limit, strconv.Itoa(size))); ; {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			waits := strings.Contains(read("memory.oom_control"), "under_oom 1")
			if root != v1 { // which does not tell
				used, _ := strconv.Atoi(strings.TrimSpace(read(usage)))
				if full++; used < size-(1<<20) {
					full = 0
				}
				if waits = full >= 10; waits {
					full = 0
				}
			}
			if waits && size < 2*cgroupLimit {
				size += 2 << 20
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
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous, BackingTemplate} {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestR10MemoryCgroupIsFull$", "-test.v")
		cmd.Env = append(os.Environ(), inCgroupEnv+"="+dir, "GUESTMM_TEST_BACKING="+strconv.Itoa(int(backing)),
			// A signal is fatal where the page that its frame goes to cannot be had.
			"GODEBUG=asyncpreemptoff=1", "GOGC=off")
		ended := make(chan struct{})
		watched := inBackground(func() { watch(ended) })
		out, err := cmd.CombinedOutput()
		close(ended)
		<-watched
		cancel()
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
	spare, err := sys.MapAnonymous(1 << 20)
	mustDo(t, err)
	f := cgroupFiller{t: t, backing: Backing(n), p: bytes.Repeat([]byte{7}, 1<<20), spare: spare}
	testutil.Within(t, 5*time.Minute, func() {
		f.rehearse()
		mustDo(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0))
		mustDo(t, sys.Drop(spare)) // which the rehearsal has populated, for another cgroup
		mustDo(t, sys.Populate(spare))
		f.fill(8 << 20)
		if done := f.fill(4 * cgroupLimit); done >= 2*cgroupLimit {
			t.Errorf("%d MiB were written in a cgroup of %d", done>>20, cgroupLimit>>20)
		}
		f.fill(8 << 20)
	})
	if !t.Failed() {
		fmt.Println("ended well")
	}
}

// cgroupFiller is what the child uses a region up with.
type cgroupFiller struct {
	t       *testing.T
	backing Backing
	p       []byte
	spare   []byte                      // populated host memory, to be given back when none is left
	write   func(fn func() error) error // runs what writes until there is no more
}

// rehearse does outside of the cgroup what is done inside: the runtime maps
// memory and makes threads when something is done for the first time, and the
// process dies where those calls fail.
func (f *cgroupFiller) rehearse() {
	done := make(chan struct{})
	for range 8 { // threads, each in a system call
		go func() {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil)
			done <- struct{}{}
		}()
	}
	for range 8 {
		<-done
	}
	heap := bytes.Repeat([]byte{1}, 32<<20) // there is no limit to collect at: it is collected here
	runtime.KeepAlive(heap)
	heap = nil
	runtime.GC()
	f.write = inject.Start(inject.Plan{Match: inject.Only("madvise: populate"), From: 40, Until: 1 << 30, Errno: unix.ENOMEM}).During
	f.fill(4 * cgroupLimit)
	f.write = func(fn func() error) error { return fn() }
}

// fill writes to a region until there is no more, and returns how much that was.
func (f *cgroupFiller) fill(size uint64) (done addr.GPA) {
	t := f.t
	m := newPhysOf(t, f.backing, size)
	err := f.write(func() error {
		for uint64(done) < size {
			k, err := m.WriteAt(f.p, done)
			done += addr.GPA(k)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if uint64(done) < size {
		if !errors.Is(err, ErrNoMemory) {
			t.Errorf("after %d MiB: %v, want ErrNoMemory", done>>20, err)
		}
		var one [1]byte
		for at := addr.GPA(0); at < done; at += page {
			if k, err := m.ReadAt(one[:], at); k != 1 || err != nil || one[0] != 7 {
				t.Fatalf("what was written at %v reads %d, %v", at, one[0], err)
			}
		}
		// Half is given back: there is room again, for more than the spare. The
		// kernel itself needs a little to map zeroes over part of a clone; where it
		// has nothing at all zeroes are stored, and nothing is given back.
		mustDo(t, sys.Drop(f.spare))
		half := uint64(done) / 2 / page * page
		mustDo(t, m.Discard(0, half))
		for i := range 4 {
			if _, err := m.WriteAt(f.p, done+addr.GPA(i*len(f.p))); err != nil {
				t.Errorf("after a discard: %v", err)
			}
		}
		for at := addr.GPA(0); at < addr.GPA(half); at += 64 * page {
			if k, err := m.ReadAt(one[:], at); k != 1 || err != nil || one[0] != 0 {
				t.Fatalf("what was given back at %v reads %d, %v", at, one[0], err)
			}
		}
	}
	mustDo(t, m.Close())
	mustDo(t, sys.Populate(f.spare))
	fmt.Printf("%d of %d MiB were written\n", done>>20, size>>20)
	return done
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
