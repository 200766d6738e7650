package guestmem

import (
	"sort"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// regionTable is the published set of regions, sorted by base: immutable, and
// replaced whole. Who reads it for an access does so in a read section; who
// takes a region away publishes a table without it, waits for the sections of
// the whole memory, and only then unmaps it.
type regionTable []*Region

// find returns the region of gpa, or nil.
func (t regionTable) find(gpa addr.GPA) *Region {
	if i := t.after(gpa); i > 0 && uint64(gpa-t[i-1].base) < t[i-1].size {
		return t[i-1]
	}
	return nil
}

// after returns the index of the first region whose base is above gpa.
func (t regionTable) after(gpa addr.GPA) int {
	return sort.Search(len(t), func(i int) bool { return t[i].base > gpa })
}

// overlapping returns a region that overlaps [gpa, gpa+size), or nil.
func (t regionTable) overlapping(gpa addr.GPA, size uint64) *Region {
	for _, r := range t {
		if uint64(gpa) < uint64(r.base)+r.size && uint64(r.base) < uint64(gpa)+size {
			return r
		}
	}
	return nil
}

// with returns the table with r in it.
func (t regionTable) with(r *Region) regionTable {
	i := t.after(r.base)
	out := append(make(regionTable, 0, len(t)+1), t[:i]...)
	return append(append(out, r), t[i:]...)
}

// without returns the table without r.
func (t regionTable) without(r *Region) regionTable {
	out := make(regionTable, 0, len(t))
	for _, x := range t {
		if x != r {
			out = append(out, x)
		}
	}
	return out
}

func (t regionTable) has(r *Region) bool {
	for _, x := range t {
		if x == r {
			return true
		}
	}
	return false
}

// shutPins keeps new slices out of all regions, unless some are held.
func (t regionTable) shutPins() error {
	for i, r := range t {
		if err := r.pins.shut(); err != nil {
			t[:i].reopenPins()
			return err
		}
	}
	return nil
}

func (t regionTable) reopenPins() {
	for _, r := range t {
		r.pins.reopen()
	}
}

// published is a table as accesses use it. What they need of a region lies side
// by side, since each load that depends on the one before costs a nanosecond,
// and the whole access has twenty.
type published struct {
	hot   []hotRegion
	table regionTable
}

type hotRegion struct {
	base     addr.GPA
	size     uint64
	look     []byte
	readable []atomic.Pointer[pageChunk] // Region.readable's
	guarded  bool
	r        *Region
}

// few is up to how many regions are looked at one after the other.
const few = 4

// find returns the region of gpa, or nil.
func (p *published) find(gpa addr.GPA) *hotRegion {
	hot := p.hot
	if len(hot) <= few {
		for i := range hot {
			if h := &hot[i]; uint64(gpa-h.base) < h.size {
				return h
			}
		}
		return nil
	}
	lo, hi := 0, len(hot) // hot[lo-1].base <= gpa < hot[hi].base
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if hot[mid].base <= gpa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 {
		if h := &hot[lo-1]; uint64(gpa-h.base) < h.size {
			return h
		}
	}
	return nil
}

// table returns the regions of the moment.
func (m *Memory) table() regionTable { return m.regions.Load().table }

// publish has every access that begins from now on find the regions of t.
func (m *Memory) publish(t regionTable) {
	p := &published{table: t, hot: make([]hotRegion, len(t))}
	for i, r := range t {
		p.hot[i] = hotRegion{r.base, r.size, r.look, r.readable.chunks, r.guarded, r}
	}
	m.regions.Store(p)
}

// Regions returns the regions of the moment, sorted by Base. The slice is the
// caller's.
func (m *Memory) Regions() []*Region { return append([]*Region(nil), m.table()...) }

// RegionAt returns the region of gpa, and false if there is a hole.
func (m *Memory) RegionAt(gpa addr.GPA) (*Region, bool) {
	r := m.table().find(gpa)
	return r, r != nil
}

// Region returns the region whose frames address spaces are made of; nil for a
// memory without a frame pool.
func (m *Memory) Region() *Region { return m.frames }
