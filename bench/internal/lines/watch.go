package lines

import (
	"fmt"
	"maps"
	"sync/atomic"
	"time"
)

const (
	lineSize = 64
	// maxSlice is how long a slice may be to be watched: what is longer is data.
	maxSlice = 64 << 10
	// maxWatched bounds all of it, so that a pass takes some ten microseconds.
	maxWatched = 256 << 10
	// looks is how often the words are looked at with the operation having moved on
	// since the last time: on a busy machine, where both share a core, that takes many
	// more passes.
	looks = 100
	// patience is for a machine that is very busy.
	patience = 3 * time.Minute
)

// A Set is the addresses of cache lines.
type Set map[uintptr]struct{}

// And returns what is in both.
func (s Set) And(other Set) Set {
	both := maps.Clone(s)
	maps.DeleteFunc(both, func(line uintptr, _ struct{}) bool {
		_, ok := other[line]
		return !ok
	})
	return both
}

// A Watch is the memory that was reachable when it was made, which it keeps
// alive.
type Watch struct {
	words  words
	before []uint64
}

// NewWatch returns what can be reached from the roots. Nothing may be changed
// meanwhile.
func NewWatch(roots ...any) *Watch {
	w := &Watch{words: reach(roots)}
	w.before = make([]uint64, w.words.len())
	return w
}

// Bytes returns how much is watched.
func (w *Watch) Bytes() int { return 8 * w.words.len() }

// During calls op again and again, and returns the lines that it changed
// meanwhile. An operation that changes anything for good has that counted too.
func (w *Watch) During(op func() error) (Set, error) {
	w.words.load(w.before)
	var (
		stop  atomic.Bool
		calls struct { // on a line that is nobody's
			_ [lineSize]byte
			n atomic.Int64
			_ [lineSize]byte
		}
		done = make(chan error, 1)
	)
	go func() {
		var err error
		for err == nil && !stop.Load() {
			err = op()
			calls.n.Add(1)
		}
		done <- err
	}()
	changed := make(Set)
	seen, last := 0, int64(0)
	for began := time.Now(); seen < looks && len(done) == 0 && time.Since(began) < patience; {
		w.words.compare(w.before, changed)
		if now := calls.n.Load(); now != last {
			seen, last = seen+1, now
		}
	}
	stop.Store(true)
	err := <-done
	w.words.compare(w.before, changed)
	if err == nil && seen < looks {
		err = fmt.Errorf("lines: the operation was looked at %d times only", seen)
	}
	return changed, err
}
