package guestmem

import (
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// frameSet is a set of frames that is kept under invariants only: those of
// tables and of the platform, which no guest may ever reach as memory.
type frameSet struct{ m sync.Map }

func (s *frameSet) mark(frames []addr.PFN) {
	if invariants.Enabled {
		for _, f := range frames {
			s.m.Store(f, struct{}{})
		}
	}
}

func (s *frameSet) unmark(frames []addr.PFN) {
	if invariants.Enabled {
		for _, f := range frames {
			s.m.Delete(f)
		}
	}
}

// isPrivileged reports whether a frame is a table's or the platform's; false if
// this build does not keep track.
func (m *Memory) isPrivileged(f addr.PFN) bool {
	if !invariants.Enabled {
		return false
	}
	_, ok := m.privileged.m.Load(f)
	return ok
}

// assertData panics, under invariants, before a table or a frame of the
// platform's would be mapped for ring 3.
func (m *Memory) assertData(f addr.PFN) {
	if invariants.Enabled && m.isPrivileged(f) {
		panic("guestmem: frame " + f.String() + " of a table or of the platform is being mapped for a guest")
	}
}
