package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	hugePool    = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	compactNow  = "/proc/sys/vm/compact_memory"
	hugeCure    = "as root: sysctl vm.nr_hugepages=%d, on a kernel with CONFIG_HUGETLBFS"
	poolLockDue = 6 * time.Minute
)

// HugePages adds n pages of 2 MiB to the host's pool until t ends, so that as many
// are free for it whatever else uses the pool. Several tests may do so at a time,
// of one process or many, and each gives back what it took. Call it before what uses the
// pages is made, so that this is gone when they are given back.
//
// Where the pool cannot be changed, t goes on with n pages that are free already,
// or else is skipped; it fails where GUESTMM_REQUIRE names hugepages.
func HugePages(t testing.TB, n int) {
	t.Helper()
	lockPool(t, unix.LOCK_SH)
	require(t, needHugePages, growPool(t, n))
}

// NoHugePages takes every free page of 2 MiB out of the host's pool until t ends,
// once no other test has any. It skips t where that cannot be done.
func NoHugePages(t testing.TB) {
	t.Helper()
	lockPool(t, unix.LOCK_EX)
	free, err := poolNumber("free_hugepages")
	if err != nil {
		t.Skipf("needs a pool of huge pages: %v", err)
	}
	if free == 0 {
		return
	}
	if err := changePool(t, -free); err != nil {
		t.Skipf("%d huge pages are free: %v; to cure it: "+hugeCure, free, err, 0)
	}
	t.Cleanup(func() {
		if err := changePool(t, free); err != nil {
			t.Error(err)
		}
	})
}

// growPool adds n pages until t ends.
func growPool(t testing.TB, n int) *lack {
	before, err := poolNumber("nr_hugepages")
	if err != nil {
		return &lack{err.Error(), fmt.Sprintf(hugeCure, n), false}
	}
	free, err := poolNumber("free_hugepages")
	if err != nil {
		t.Fatal(err)
	}
	if err := changePool(t, n); err != nil {
		if free >= n {
			return nil
		}
		return &lack{fmt.Sprintf("%d pages of 2 MiB are free, not %d, and the pool cannot grow: %v", free, n, err), fmt.Sprintf(hugeCure, before+n), false}
	}
	t.Cleanup(func() {
		if err := changePool(t, -n); err != nil {
			t.Error(err)
		}
	})
	return nil
}

// changePool adds n pages to the pool, or takes them. What it cannot add wholly it
// takes back. Pages that are in use still go when they come free.
func changePool(t testing.TB, n int) error {
	unlock := lockFile(t, "guestmm-test-hugepages-size.lock", unix.LOCK_EX)
	defer unlock()
	before, err := poolNumber("nr_hugepages")
	if err != nil {
		return err
	}
	want := max(before+n, 0)
	if err := setPool(want); err != nil || n <= 0 {
		return err
	}
	got, err := poolNumber("nr_hugepages")
	if err == nil && got < want {
		// The host's memory is in pieces: have them put together.
		_ = os.WriteFile(compactNow, []byte("1"), 0)
		if err = setPool(want); err == nil {
			got, err = poolNumber("nr_hugepages")
		}
	}
	if err == nil && got < want {
		err = fmt.Errorf("the host made %d of %d more", got-before, n)
	}
	if err != nil {
		_ = setPool(before)
	}
	return err
}

func setPool(n int) error {
	return os.WriteFile(hugePool+"nr_hugepages", []byte(strconv.Itoa(n)), 0)
}

func poolNumber(name string) (int, error) {
	b, err := os.ReadFile(hugePool + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// lockPool keeps tests that want pages and those that want none apart, until t ends.
func lockPool(t testing.TB, how int) {
	t.Helper()
	t.Cleanup(lockFile(t, "guestmm-test-hugepages.lock", how))
}

// lockFile locks a file that all test processes share, and returns what unlocks it.
func lockFile(t testing.TB, name string, how int) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(os.TempDir(), name), os.O_CREATE|os.O_RDONLY, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(poolLockDue); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(deadline) {
			f.Close()
			t.Fatalf("lock %s: %v", f.Name(), err)
		}
	}
}
