//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A robust list names the mutexes that a thread holds, so that its death can be
// told to who waits for them. It is the thread's own memory, which anybody may
// have scribbled on: the walk is bounded, stops at the first address that makes
// no sense, and changes only words that hold the thread's own id.

const (
	robustHeadSize = 24
	robustMost     = 2048 // ROBUST_LIST_LIMIT

	futexWaiters   = 1 << 31
	futexOwnerDied = 1 << 30
	futexTIDMask   = futexOwnerDied - 1
)

func sysSetRobustList(t *Task, a args) (uint64, error) {
	if a[1] != robustHeadSize {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.robust = gva(a[0])
	return 0, nil
}

func sysGetRobustList(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	target, err := t.taskArgLocked(a[0])
	head := addr.GVA(0)
	if err == nil {
		head = target.robust
	}
	t.k.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if err := put(t, a[2], uint64(robustHeadSize)); err != nil {
		return 0, err
	}
	return 0, put(t, a[1], uint64(head))
}

// leaveMemory does what a thread owes to others when it lets go of its address
// space, by exit or by execve: its robust mutexes, and the word that
// CLONE_CHILD_CLEARTID names.
func (t *Task) leaveMemory() {
	t.k.mu.Lock()
	head := t.robust
	t.robust = 0
	t.k.mu.Unlock()
	if head != 0 {
		t.walkRobust(uint64(head))
	}
	t.leavePI()
	t.clearTIDWord()
}

func (t *Task) walkRobust(head uint64) {
	h, err := get[[3]uint64](t, head) // first entry, offset of the word, entry being changed
	if err != nil {
		return
	}
	const isPI = 1
	offset, pending := h[1], h[2]
	for entry, n := h[0], 0; entry&^isPI != head && n < robustMost; n++ {
		// The next one is read first: who is told may free this one.
		next, err := get[uint64](t, entry&^isPI)
		if entry&^isPI != pending&^isPI && !t.ownerDied((entry&^isPI)+offset, entry&isPI != 0, false) {
			return
		}
		if err != nil || t.k.ctx.Err() != nil {
			return
		}
		entry = next
	}
	if pending&^isPI != 0 {
		t.ownerDied((pending&^isPI)+offset, pending&isPI != 0, true)
	}
}

// ownerDied marks a mutex whose owner is gone and wakes a waiter. A mutex that
// was being taken or released may have lost its wake-up: it is woken even if
// it is free. False if there is no such word.
func (t *Task) ownerDied(at uint64, isPI, pending bool) bool {
	if at%4 != 0 || at >= stackTop {
		return false
	}
	for {
		v, err := t.space().Load32(t.call, gva(at))
		if err != nil {
			return false
		}
		if pending && !isPI && v == 0 {
			t.wakeShared(at)
			return true
		}
		if v&futexTIDMask != uint32(t.tid) {
			return true
		}
		swapped, err := t.space().CompareAndSwap32(t.call, gva(at), v, v&futexWaiters|futexOwnerDied)
		if err != nil {
			return false
		}
		if swapped {
			if v&futexWaiters != 0 && !isPI {
				t.wakeShared(at)
			}
			return true
		}
	}
}

// clearTIDWord tells whoever waits for the task's end. As under Linux, only if
// somebody else is left in the address space to see it.
func (t *Task) clearTIDWord() {
	at := uint64(t.clearTID)
	t.clearTID = 0
	if at == 0 {
		return
	}
	t.k.mu.Lock()
	p := t.proc
	seen := p.mm.users > 1 || (len(p.tasks) > 1 && !p.exiting)
	t.k.mu.Unlock()
	if !seen {
		return
	}
	err := t.space().Store32(t.call, gva(at), 0)
	if at%4 != 0 {
		err = put(t, at, uint32(0))
	}
	if err == nil {
		t.wakeShared(at)
	}
}

// wakeShared wakes one waiter of a word, as FUTEX_WAKE does.
func (t *Task) wakeShared(at uint64) {
	if key, release, err := t.futexKey(at, false); err == nil {
		t.k.futexes.wake(key, 1, ^uint32(0))
		release()
	}
}
