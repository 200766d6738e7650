//go:build linux && amd64

package kernel

import (
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// No wake-up is lost. A thread that waits looks at its word and queues itself
// under futexes.mu, and a thread that wakes takes futexes.mu after it has changed
// the word:
//
//	waiter                          waker
//	lock                            word = new
//	word == old?  no: EAGAIN        lock
//	queue                           take waiters off the queue
//	unlock                          unlock
//	sleep
//
// If the waiter locks first, the waker finds it in the queue. If the waker does,
// the word has changed before the waiter looks. The lock is what orders the two;
// the load itself is a plain atomic one, of the frame that the guest's threads
// store to, since a frame is replaced only after all stores to it have ended.
//
// A waiter that a signal or its timeout ends at the moment when somebody takes it
// off the queue has been woken: it says so, or the wake-up would be nobody's.
//
// This is the one lock under which guest memory is touched. The word's page is
// brought in before, so that it rarely faults there; when it does, every futex
// of the sandbox waits for that page, and nothing else does.

// futexKey names a futex word. Memory of the process's own is named by address
// space and address; memory that several processes share, by frame, which is the
// shared object's for as long as the area is pinned or mapped anywhere.
type futexKey struct {
	mm *mm // nil: at is an offset in frame
	at uint64

	frame addr.PFN
}

// futexes are the waiters of all words. One lock for all: what a call costs to
// enter and leave the guest is some fifty times what it holds the lock.
type futexes struct {
	mu      sync.Mutex
	waiters map[futexKey][]*futexWaiter // in order of arrival; guarded by mu
	pi      map[futexKey]*piLock        // see futexpi.go; guarded by mu
}

type futexWaiter struct {
	key    futexKey // guarded by futexes.mu: requeueing changes it
	queued bool     // guarded by futexes.mu
	bitset uint32
	woken  chan struct{} // closed when it is taken off the queue
}

// futexKey returns the key of a word. Release lets go of what keeps the key
// the word's, and is to be called when nobody waits by it any more.
//
// A word that nothing is mapped at has a key too, since that is cheaper than to
// find out: nobody can wait by it.
func (t *Task) futexKey(at uint64, private bool) (futexKey, func(), error) {
	own := futexKey{mm: t.proc.mm, at: at}
	if private {
		return own, func() {}, nil
	}
	if area, ok := t.space().FindArea(gva(at)); !ok || !area.Shared {
		return own, func() {}, nil
	}
	r := addr.Range{Start: gva(at), End: gva(at + 4)}
	pin, err := t.space().Pin(t.call, r, guestmem.Read)
	if err != nil {
		return futexKey{}, nil, copyError(err)
	}
	return futexKey{at: at % pageSize, frame: pin.Frames()[0]}, func() { _ = pin.Release() }, nil
}

// wait queues a waiter by key if check, called under the lock, says so.
func (f *futexes) wait(key futexKey, bitset uint32, check func() error) (*futexWaiter, error) {
	w := &futexWaiter{key: key, queued: true, bitset: bitset, woken: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := check(); err != nil {
		return nil, err
	}
	if f.waiters == nil {
		f.waiters = make(map[futexKey][]*futexWaiter)
	}
	f.waiters[key] = append(f.waiters[key], w)
	return w, nil
}

// leave takes a waiter off its queue. False: it has been woken.
func (f *futexes) leave(w *futexWaiter) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !w.queued {
		return false
	}
	w.queued = false
	f.filterLocked(w.key, func(other *futexWaiter) bool { return other != w })
	return true
}

// wake wakes up to n waiters whose bits meet bitset.
func (f *futexes) wake(key futexKey, n int, bitset uint32) (woken int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wakeLocked(key, n, bitset)
}

func (f *futexes) wakeLocked(key futexKey, n int, bitset uint32) (woken int) {
	f.filterLocked(key, func(w *futexWaiter) (keep bool) {
		if woken >= n || w.bitset&bitset == 0 {
			return true
		}
		woken++
		w.wakeLocked()
		return false
	})
	return woken
}

func (w *futexWaiter) wakeLocked() {
	w.queued = false
	close(w.woken)
}

// requeueLocked wakes up to wake waiters and has up to move others wait by
// another key. It returns how many it did either with.
func (f *futexes) requeueLocked(from, to futexKey, wake, move int) int {
	if from == to {
		woken := f.wakeLocked(from, wake, anyBit)
		return woken + min(move, len(f.waiters[from]))
	}
	var list []*futexWaiter
	woken, moved := 0, 0
	f.filterLocked(from, func(w *futexWaiter) (keep bool) {
		switch {
		case woken < wake:
			woken++
			w.wakeLocked()
		case moved < move:
			moved++
			w.key = to
			list = append(list, w)
		default:
			return true
		}
		return false
	})
	if len(list) > 0 {
		f.waiters[to] = append(f.waiters[to], list...)
	}
	return woken + moved
}

// filterLocked keeps the waiters of a key that keep says so of.
func (f *futexes) filterLocked(key futexKey, keep func(*futexWaiter) bool) {
	old := f.waiters[key]
	kept := old[:0]
	for _, w := range old {
		if keep(w) {
			kept = append(kept, w)
		}
	}
	clear(old[len(kept):])
	if len(kept) == 0 {
		delete(f.waiters, key)
	} else {
		f.waiters[key] = kept
	}
}
