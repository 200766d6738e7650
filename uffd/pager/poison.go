package pager

import (
	"errors"
	"syscall"
)

// poison makes every page that is still missing fail whoever touches it, by
// SIGBUS, and reports whether that has worked for all of them. It is for a
// forked child that nobody serves: closing its descriptor would show it zeroes.
// The child runs no vCPU, since those stay with who made them.
func (l *ledger) poison() bool {
	for _, s := range l.layout.Load().spans {
		for i := s.first; i < s.first+s.n; {
			if st := s.r.pages.at(i) & stateMask; st == present || st == removed {
				i++
				continue
			}
			n := 1
			for i+n < s.first+s.n && s.r.pages.at(i+n)&stateMask == absent {
				n++
			}
			done, ok := l.poisonRun(s.r, i, n)
			if !ok {
				return false
			}
			i += done
		}
	}
	return true
}

// poisonRun poisons some of n pages, and returns how many it has dealt with.
func (l *ledger) poisonRun(r *region, i, n int) (int, bool) {
	at, n, ok := l.layout.Load().locate(r, i, n)
	if !ok {
		return 1, true
	}
	for range poisonTries {
		bytes, err := l.k.Poison(at, r.bytes(n), 0)
		done := int(bytes >> r.shift)
		switch {
		case err == nil, done > 0:
			return max(done, 1), true
		case isAny(err, syscall.EEXIST, syscall.ENOENT):
			return 1, true // there already, or not mapped
		case errors.Is(err, syscall.ESRCH):
			return n, true // nobody is left to see anything
		case !isTransient(err):
			return 0, false
		}
		sleepShort(retryEvery)
	}
	return 0, false
}

// poisonTries bounds the wait for a layout change of the child to end: a second.
const poisonTries = 4000
