//go:build amd64

package guestmem

import "golang.org/x/sys/unix"

// helperMaxLocked is how much the kernel's side may lock: it has this process's
// limit.
func helperMaxLocked() int64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil || l.Cur > 1<<62 {
		return 0
	}
	if l.Cur == 0 {
		return -1
	}
	return int64(l.Cur)
}
