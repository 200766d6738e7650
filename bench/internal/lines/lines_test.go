package lines

import (
	"errors"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// A store is what readers read: with a lock of all, and a slot of each.
type store struct {
	mu    sync.RWMutex
	_     [128]byte
	inner *inner
}

type inner struct{ slots []*slot }

type slot struct {
	_ [128]byte
	n uint64
	_ [128]byte
}

func newStore() *store {
	return &store{inner: &inner{[]*slot{new(slot), new(slot)}}}
}

// during returns the lines that both operations change.
func during(t *testing.T, s *store, ops ...func() error) Set {
	t.Helper()
	w := NewWatch(s)
	if w.Bytes() < 2*256 {
		t.Fatalf("%d bytes are watched: the slots are not among them", w.Bytes())
	}
	a, err := w.During(ops[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.During(ops[1])
	if err != nil {
		t.Fatal(err)
	}
	if len(a) == 0 || len(b) == 0 {
		t.Fatalf("%d and %d lines were seen to change", len(a), len(b))
	}
	return a.And(b)
}

func TestOwnSlotsShareNoLine(t *testing.T) {
	s := newStore()
	own := func(i int) func() error {
		return func() error {
			s.inner.slots[i].n++
			return nil
		}
	}
	if both := during(t, s, own(0), own(1)); len(both) != 0 {
		t.Errorf("%d lines are shared", len(both))
	}
}

// A lock that has been let go looks as before: it is seen while it is held.
func TestALockIsSeen(t *testing.T) {
	s := newStore()
	own := func(i int) func() error {
		return func() error {
			for range 1000 {
				s.mu.RLock()
				s.inner.slots[i].n++
				s.mu.RUnlock()
			}
			return nil
		}
	}
	if both := during(t, s, own(0), own(1)); len(both) != 1 {
		t.Errorf("%d lines are shared, want the lock's", len(both))
	}
}

func TestDuringReturnsTheError(t *testing.T) {
	broken := errors.New("broken")
	if _, err := NewWatch(newStore()).During(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
