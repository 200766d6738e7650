package profile

import (
	"sync"
	"time"
)

// Place is where a sample belongs, from the outside in; Detail may be empty.
type Place struct{ Group, Name, Detail string }

// Groups of places.
const (
	Guest    = "guest"
	Syscalls = "syscalls"
	Faults   = "faults"
)

// Sum is what has been recorded for a Place.
type Sum struct {
	Count uint64
	Time  time.Duration
	Pages uint64
}

// Recorder adds up. A nil Recorder is one that is off. Safe for concurrent use.
type Recorder struct {
	began time.Time // immutable

	mu   sync.Mutex
	sums map[Place]*Sum // guarded by mu
}

// NewRecorder returns an empty Recorder.
func NewRecorder() *Recorder {
	return &Recorder{began: time.Now(), sums: make(map[Place]*Sum)}
}

// Add records one event.
func (r *Recorder) Add(at Place, took time.Duration, pages uint64) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sums[at]
	if s == nil {
		s = new(Sum)
		r.sums[at] = s
	}
	s.Count++
	s.Time += took
	s.Pages += pages
}

// Sums returns a copy of what has been recorded.
func (r *Recorder) Sums() map[Place]Sum {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[Place]Sum, len(r.sums))
	for at, s := range r.sums {
		all[at] = *s
	}
	return all
}
