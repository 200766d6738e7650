//go:build linux && amd64

package kvm

import (
	"fmt"
	"math"
	"runtime"

	"golang.org/x/sys/unix"
)

// mostResets is how often the kernel may end a reset early in one drain.
const mostResets = 100

// rearm has KVM arm the pages of the entries that were taken.
//
// Newer kernels (6.18 for one) end KVM_RESET_DIRTY_RINGS early, and without an error, when a
// signal is pending: the result says how many entries are done, and of the last
// 64 of those some were given back and not armed. What is written there would
// never be heard of again; and the Go runtime sends signals all the time. So
// none reaches the thread meanwhile, but for what cannot be kept from it (SIGSTOP,
// a debugger, a cgroup that is frozen). Where the result shows that one of those has ended
// it, all pages that are pending are in doubt: they are dirty at each harvest, until KVM has
// told of them once more. An end after the very last entry cannot be seen: the count is
// right, and up to 64 pages are not armed. Who stops threads does it between harvests.
//
// Errors: unix.EINTR if there is no end of that; what is left is done by the next call.
//
// Preconditions: d.mu is held.
func (d *dirtyTracker) rearm(fd int) error {
	for tries := 0; d.resetDue > 0; tries++ {
		if tries == mostResets {
			return opError("KVM_RESET_DIRTY_RINGS", fmt.Errorf("%w: %d entries are left after %d calls", unix.EINTR, d.resetDue, tries))
		}
		done, err := d.reset(fd)
		if err != nil {
			return opError("KVM_RESET_DIRTY_RINGS", err)
		}
		if 0 < done && done < d.resetDue {
			d.doubtful.addFrom(d.pending, 0, math.MaxUint64)
		}
		d.resetDue -= min(done, d.resetDue)
	}
	return nil
}

// resetRings is KVM_RESET_DIRTY_RINGS, with the thread's signals blocked.
func resetRings(fd int) (done int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, former unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &former); err != nil {
		return 0, err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &former, nil)
	err = retryEINTR(func() error {
		done, err = ioctl(fd, reqResetDirtyRings, 0)
		return err
	})
	return done, err
}
