//go:build amd64 || arm64

package uffd

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A handle owns a descriptor that several goroutines use. It is closed once
// close was called and the last user has left, so that no call ever reaches a
// descriptor that has the same number by accident.
type handle struct {
	fd    int           // immutable
	state atomic.Uint64 // number of users, and handleClosed
}

const handleClosed = 1 << 63

// acquire counts a user in. It fails once close was called.
//
// A failed attempt leaves the count alone: after the bit is set the count only
// falls, and so is zero exactly once.
func (h *handle) acquire() bool {
	for {
		old := h.state.Load()
		if old&handleClosed != 0 {
			return false
		}
		if h.state.CompareAndSwap(old, old+1) {
			return true
		}
	}
}

// release counts a user out.
func (h *handle) release() {
	if h.state.Add(^uint64(0)) == handleClosed {
		unix.Close(h.fd)
	}
}

func (h *handle) isClosed() bool { return h.state.Load()&handleClosed != 0 }

// close reports whether it was this call that closed the handle. If users are
// left the last of them closes the descriptor.
func (h *handle) close() (bool, error) {
	for {
		old := h.state.Load()
		if old&handleClosed != 0 {
			return false, nil
		}
		if !h.state.CompareAndSwap(old, old|handleClosed) {
			continue
		}
		if old == 0 {
			return true, unix.Close(h.fd)
		}
		return true, nil
	}
}
