//go:build linux && amd64

package kernel

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Mutexes with priority inheritance. All threads have one priority here, so what
// is left of it is that the kernel hands the mutex over: the word holds the
// owner's id, and who waits becomes the owner without having raced for it.
//
//	word: owner's tid | futexWaiters (to unlock is a call) | futexOwnerDied
//
// A mutex with waiters has a piLock, which names the owner by its Task. So the
// owner's end hands the mutex over too, whether the mutex is robust or not; the
// word then says that the owner died.
//
// Words are changed by compare-and-swap under futexes.mu, the threads' own
// attempts to lock and unlock without a call come between as they may.

const (
	futexLockPI, futexUnlockPI, futexTrylockPI = 6, 7, 8
	futexLockPI2                               = 13
)

// piLock is a mutex that somebody waits for. Guarded by futexes.mu.
type piLock struct {
	owner   *Task
	waiters []*piWaiter // in order of arrival, never empty
}

type piWaiter struct {
	task *Task
	at   uint64        // the word in the task's memory
	done chan struct{} // closed when the mutex is the task's, or the task is to look again
	have bool          // it is the task's; guarded by futexes.mu
}

func (t *Task) futexPI(op uint32, a args, private bool) (uint64, error) {
	key, release, err := t.futexKey(a[0], private)
	if err != nil {
		return 0, err
	}
	defer release()
	if _, err := t.space().Load32(t.call, gva(a[0])); err != nil { // brings the page in
		return 0, copyError(err)
	}
	switch op {
	case futexUnlockPI:
		return 0, t.unlockPI(key, a[0])
	case futexTrylockPI:
		return 0, t.lockPI(key, a[0], time.Time{}, false)
	}
	clock := uint64(futexRealtime)
	if op == futexLockPI2 {
		clock = a[1] & futexRealtime
	}
	deadline, err := t.futexDeadline(futexWaitBitset, args{0, clock, 0, a[3]})
	if err != nil {
		return 0, err
	}
	return 0, t.lockPI(key, a[0], deadline, true)
}

// lockPI makes the mutex the task's. EDEADLK if it is already, ESRCH if the
// owner is no thread, EAGAIN if it is not to wait.
func (t *Task) lockPI(key futexKey, at uint64, deadline time.Time, wait bool) error {
	timer, stop := timerChannel(deadline)
	defer stop()
	for {
		v, err := t.space().Load32(t.call, gva(at))
		if err != nil {
			return copyError(err)
		}
		t.k.mu.Lock()
		owner := t.k.tasks[int(v&futexTIDMask)]
		t.k.mu.Unlock()
		w, err := t.k.futexes.lockPI(t, key, at, v, owner, wait)
		switch err {
		case errPIAgain:
			continue
		case errPIEnding:
			pause, stop := timerChannel(time.Now().Add(endingPause))
			err := t.sleep(nil, pause)
			if stop(); err == errInterrupted {
				return errInterruptedAlways
			}
			continue
		}
		if w == nil {
			return err
		}
		err = t.sleep(w.done, timer)
		if t.k.futexes.leavePI(key, w) {
			return nil
		}
		switch err {
		case nil: // somebody wrote to the word what makes no sense: once more
		case errTimeout:
			return unix.ETIMEDOUT
		default:
			return errInterruptedAlways // C libraries know no EINTR here
		}
	}
}

const (
	errPIAgain  = unix.EALREADY    // the word has changed meanwhile
	errPIEnding = unix.EINPROGRESS // the owner is about to say that it has died

	endingPause = 100 * time.Microsecond
)

// lockPI takes the mutex whose word was v and owned by owner, or queues.
func (f *futexes) lockPI(t *Task, key futexKey, at uint64, v uint32, owner *Task, wait bool) (*piWaiter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lock := f.pi[key]
	swap := func(next uint32) error {
		swapped, err := t.space().CompareAndSwap32(t.call, gva(at), v, next)
		if err == nil && !swapped {
			return errPIAgain
		}
		return copyError(err)
	}
	switch id := v & futexTIDMask; {
	case id == uint32(t.tid):
		return nil, unix.EDEADLK
	case id == 0 && lock == nil:
		return nil, swap(uint32(t.tid) | v&futexOwnerDied)
	case !wait:
		return nil, unix.EAGAIN
	case lock != nil: // whoever the word names, the queue has an owner
		owner = lock.owner
	case owner == nil:
		// It may have unlocked, or said that it died, before it went.
		if now, err := t.space().Load32(t.call, gva(at)); err != nil || now != v {
			return nil, errPIAgain
		}
		return nil, unix.ESRCH
	case owner.goneFromPI:
		return nil, errPIEnding
	}
	if err := swap(v | futexWaiters); err != nil {
		return nil, err
	}
	if lock == nil {
		lock = &piLock{owner: owner}
		if f.pi == nil {
			f.pi = make(map[futexKey]*piLock)
		}
		f.pi[key] = lock
	}
	w := &piWaiter{task: t, at: at, done: make(chan struct{})}
	lock.waiters = append(lock.waiters, w)
	return w, nil
}

// leavePI ends a wait, and reports whether the mutex is the waiter's.
func (f *futexes) leavePI(key futexKey, w *piWaiter) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if lock := f.pi[key]; lock != nil {
		lock.waiters = slices.DeleteFunc(lock.waiters, func(other *piWaiter) bool { return other == w })
		f.pruneLocked(key, lock)
	}
	return w.have
}

func (f *futexes) pruneLocked(key futexKey, lock *piLock) {
	if len(lock.waiters) == 0 {
		delete(f.pi, key)
	}
}

// unlockPI gives the mutex to who has waited longest, or frees it. EPERM if it
// is not the task's.
func (t *Task) unlockPI(key futexKey, at uint64) error {
	f := &t.k.futexes
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		v, err := t.space().Load32(t.call, gva(at))
		if err != nil {
			return copyError(err)
		}
		if v&futexTIDMask != uint32(t.tid) {
			return unix.EPERM
		}
		next, lock := uint32(0), f.pi[key]
		if lock != nil {
			next = lock.nextWord()
		}
		swapped, err := t.space().CompareAndSwap32(t.call, gva(at), v, next)
		if err != nil {
			return copyError(err)
		}
		if swapped {
			if lock != nil {
				f.handOverLocked(key, lock)
			}
			return nil
		}
	}
}

// nextWord is the word of the mutex when the first waiter has it.
func (l *piLock) nextWord() uint32 {
	next := uint32(l.waiters[0].task.tid)
	if len(l.waiters) > 1 {
		next |= futexWaiters
	}
	return next
}

// handOverLocked tells the first waiter that it owns the mutex. The word says so.
func (f *futexes) handOverLocked(key futexKey, lock *piLock) {
	w := lock.waiters[0]
	lock.waiters, lock.owner = lock.waiters[1:], w.task
	f.pruneLocked(key, lock)
	w.have = true
	close(w.done)
}

// endPI has nobody queue behind the task any more: it ends.
func (t *Task) endPI() {
	t.k.futexes.mu.Lock()
	defer t.k.futexes.mu.Unlock()
	t.goneFromPI = true
}

// leavePI hands over what the task owns: it leaves its memory.
func (t *Task) leavePI() {
	f := &t.k.futexes
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, lock := range f.pi {
		if lock.owner == t {
			f.ownerGoneLocked(key, lock)
		}
	}
}

// ownerGoneLocked hands a mutex of a dead owner over. The word is reached where
// the waiter has it: the waiter sleeps, so its memory is there.
func (f *futexes) ownerGoneLocked(key futexKey, lock *piLock) {
	dead := uint32(lock.owner.tid)
	for {
		w := lock.waiters[0]
		as, ctx := w.task.space(), w.task.k.ctx
		v, err := as.Load32(ctx, gva(w.at))
		if id := v & futexTIDMask; err == nil && (id == 0 || id == dead) {
			swapped, err := as.CompareAndSwap32(ctx, gva(w.at), v, lock.nextWord()|futexOwnerDied)
			if err == nil && !swapped {
				continue
			}
			if err == nil {
				f.handOverLocked(key, lock)
				return
			}
		}
		// The word is gone or says something else: each looks for itself.
		for _, w := range lock.waiters {
			close(w.done)
		}
		delete(f.pi, key)
		return
	}
}
