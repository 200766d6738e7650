//go:build amd64

package guestmem

import (
	"testing"

	"golang.org/x/sys/unix"
)

// mostLocked is how much the kernel's side may lock at most, Linux's default: without a
// limit, an operation that locks all of a large area would fill the host.
const mostLocked = 8 << 20

// helperMaxLocked is how much the kernel's side may lock.
func helperMaxLocked() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return mostLocked
	}
	if l.Cur == 0 {
		return -1
	}
	return int64(min(l.Cur, mostLocked))
}

// limitLocked has a process keep to helperMaxLocked.
func limitLocked(tb testing.TB, pid int) {
	tb.Helper()
	var l unix.Rlimit
	mustDo(tb, unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, nil, &l))
	if l.Cur > mostLocked {
		mustDo(tb, unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: mostLocked, Max: l.Max}, nil))
	}
}
