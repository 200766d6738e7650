package guestmem

import (
	"errors"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/uffd"
)

// A watcher has its userfaultfd by two descriptors. While one is open everything stays
// armed, and who faults waits; so if the one that is used is closed by somebody's
// mistake, in this process, the other goes on in its place (R12).

// isLost reports whether an error may be of a descriptor that is not the userfaultfd
// any more: closed, or another file by now.
func isLost(err error) bool {
	return errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ENOTTY) ||
		errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EIO)
}

// with makes a request, and again by the other descriptor where the first was lost.
func (w *watcher) with(request func(fd *uffd.FD) error) error {
	fd := w.fd.Load()
	err := request(fd)
	if isLost(err) {
		if next := w.replace(fd); next != nil {
			return request(next)
		}
	}
	return err
}

// replace returns the descriptor that has taken the place of a lost one; nil if that
// is not lost, or there is no other.
func (w *watcher) replace(lost *uffd.FD) *uffd.FD {
	w.spareMu.Lock()
	defer w.spareMu.Unlock()
	if fd := w.fd.Load(); fd != lost {
		return fd
	}
	if _, _, err := lost.Pending(); err == nil || errors.Is(err, uffd.ErrClosed) || w.spare == nil {
		return nil
	}
	// The lost one is not closed: its number may be somebody else's by now.
	fd := w.spare
	w.spare, _ = fd.Dup() // or there is none the next time
	w.fd.Store(fd)
	return fd
}

// closeDescriptors ends the userfaultfd.
func (w *watcher) closeDescriptors() {
	w.spareMu.Lock()
	defer w.spareMu.Unlock()
	w.fd.Load().Close()
	if w.spare != nil {
		w.spare.Close()
	}
}

// serveAll has faults answered until the watcher is closed, by whatever descriptor.
func (w *watcher) serveAll(wt *uffd.Waiter) {
	for fd := w.fd.Load(); ; {
		err := w.serve(wt)
		wt.Close()
		if errors.Is(err, uffd.ErrClosed) {
			return
		}
		next := w.replace(fd)
		if next == nil {
			next = fd // nothing of what it says can be mended here
		}
		for wt = nil; wt == nil; {
			if w.ctx.Err() != nil {
				return
			}
			if wt, err = w.newWaiter(next); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
		fd = next
	}
}

// newWaiter makes a waiter that ends with the watcher.
func (w *watcher) newWaiter(fd *uffd.FD) (*uffd.Waiter, error) {
	wt, err := fd.NewWaiter()
	if err != nil {
		return nil, err
	}
	w.spareMu.Lock()
	defer w.spareMu.Unlock()
	if w.ctx.Err() != nil {
		wt.Close()
	}
	w.waiters = append(w.waiters, wt)
	return wt, nil
}

// closeWaiters has nobody wait for faults any more.
func (w *watcher) closeWaiters() {
	w.spareMu.Lock()
	defer w.spareMu.Unlock()
	w.cancel()
	for _, wt := range w.waiters {
		wt.Close()
	}
}
