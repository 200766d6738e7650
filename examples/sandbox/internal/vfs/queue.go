package vfs

import "sync"

// Queue is a set of channels to send to when something has changed. The zero
// value is ready. Each channel should have room for one: a send that finds no
// room is dropped, since the one already there will wake its reader.
type Queue struct {
	mu      sync.Mutex
	waiting map[chan<- struct{}]int // how often each was added; guarded by mu
}

// Watch adds ready until stop is called. Stop may be called more than once.
func (q *Queue) Watch(ready chan<- struct{}) (stop func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == nil {
		q.waiting = make(map[chan<- struct{}]int)
	}
	q.waiting[ready]++
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.waiting[ready]--; q.waiting[ready] == 0 {
			delete(q.waiting, ready)
		}
	})
}

// Wake sends to every channel. It never blocks.
func (q *Queue) Wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ready := range q.waiting {
		select {
		case ready <- struct{}{}:
		default:
		}
	}
}
