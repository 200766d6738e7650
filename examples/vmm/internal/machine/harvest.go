//go:build linux && amd64

package machine

import (
	"fmt"
	"slices"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Tally is how harvests compare with the ledgers.
type Tally struct {
	Harvests, Dirty  uint64
	Missed, Spurious uint64
	First            string // the first that was missed
}

// Add adds another tally.
func (t *Tally) Add(o Tally) {
	t.Harvests, t.Dirty = t.Harvests+o.Harvests, t.Dirty+o.Dirty
	t.Missed, t.Spurious = t.Missed+o.Missed, t.Spurious+o.Spurious
	if t.First == "" {
		t.First = o.First
	}
}

// Baseline harvests and forgets, while the vCPUs wait at their doorbells.
func (g *Guest) Baseline() error {
	if _, _, err := g.collect(0); err != nil {
		return err
	}
	for id := range g.Model.ledgers {
		l := &g.Model.ledgers[id]
		l.entries, l.flying, l.first = l.entries[:0], nil, l.next
	}
	return nil
}

// collect harvests every area, the one with an ID first, and returns what that took.
func (g *Guest) collect(timed uint64) (found map[guest.Entry]bool, took time.Duration, err error) {
	found = make(map[guest.Entry]bool)
	type run struct {
		start  addr.GPA
		nPages uint64
	}
	var runs []run
	areas := make([]*modelArea, 0, len(g.Model.areas))
	for _, a := range g.Model.areas {
		areas = append(areas, a)
		if a.ID == timed { // what is drained for one area, others find drained
			areas[0], areas[len(areas)-1] = a, areas[0]
		}
	}
	for _, a := range areas {
		r, ok := g.Memory.RegionAt(a.Base)
		if !ok {
			return nil, 0, fmt.Errorf("area %d has no region at %v", a.ID, a.Base)
		}
		runs = slices.Grow(runs[:0], int(min(a.Pages, 1<<9)))
		began := time.Now()
		err := g.Memory.CollectDirty(r, func(start addr.GPA, nPages uint64) { runs = append(runs, run{start, nPages}) })
		if a.ID == timed {
			took = time.Since(began)
		}
		if err != nil {
			return nil, 0, err
		}
		for _, x := range runs {
			first := uint64(x.start-a.Base) / addr.PageSize
			for i := range x.nPages {
				found[guest.Entry(a.ID<<48|(first+i))] = true
			}
		}
	}
	return found, took, nil
}

// Harvest harvests every area, and compares with what the ledgers say; vCPUs may be
// running. Of the writes of a vCPU, in order:
//
//	done before the harvest began                     have to be in it
//	begun before it ended, not done when it began     in it, or one that comes before the next
//	                                                  that begins after they are done, or that
//	begun after it ended                              not in it
//
// A page that none of the first two is of is spurious. discarded are pages that
// the VMM has changed since the last harvest, which have to be in this one.
func (g *Guest) Harvest(discarded ...guest.Entry) (Tally, error) {
	t, _, err := g.HarvestTimed(0, discarded...)
	return t, err
}

// AreaHarvest is one area's part of a harvest.
type AreaHarvest struct {
	Took    time.Duration // by the library
	Written uint64        // pages that were found, and that the guest says it wrote
}

// HarvestTimed is Harvest, and says how the area with an ID did.
func (g *Guest) HarvestTimed(area uint64, discarded ...guest.Entry) (Tally, AreaHarvest, error) {
	var tails, heads [guest.VCPUs]uint64
	var err error
	for id := range tails {
		if tails[id], err = g.Memory.Load64(control(uint64(id)) + guest.ControlTail); err != nil {
			return Tally{}, AreaHarvest{}, err
		}
	}
	found, took, err := g.collect(area)
	if err != nil {
		return Tally{}, AreaHarvest{}, err
	}
	for id := range heads {
		if heads[id], err = g.Memory.Load64(control(uint64(id)) + guest.ControlHead); err != nil {
			return Tally{}, AreaHarvest{}, err
		}
		if err := g.fetchTo(id, heads[id]); err != nil {
			return Tally{}, AreaHarvest{}, err
		}
	}
	t := Tally{Harvests: 1, Dirty: uint64(len(found))}
	may := make(map[guest.Entry]bool)
	for _, e := range discarded {
		may[e] = true
		t.want(e, found[e], "discarded")
	}
	for id := range g.Model.ledgers {
		g.Model.ledgers[id].account(&t, found, may, tails[id], heads[id])
	}
	of := AreaHarvest{Took: took}
	for e := range found {
		switch {
		case !may[e]:
			t.Spurious++
		case e.Area() == area:
			of.Written++
		}
	}
	return t, of, nil
}

func (t *Tally) want(e guest.Entry, isFound bool, what string) {
	if isFound {
		return
	}
	if t.Missed++; t.First == "" {
		t.First = fmt.Sprintf("page %d of area %d, %s", e.Page(), e.Area(), what)
	}
}

// account settles the entries up to head with a harvest that began when those up
// to tail were done, and ended before any from head on was begun.
func (l *ledger) account(t *Tally, found, may map[guest.Entry]bool, tail, head uint64) {
	var still []flight
	for _, f := range l.flying {
		may[f.entry] = true
		f.wasSeen = f.wasSeen || found[f.entry]
		if f.number < tail {
			t.want(f.entry, f.wasSeen, "written during a harvest")
		} else {
			still = append(still, f)
		}
	}
	n := head - l.first
	for i, e := range l.entries[:n] {
		may[e] = true
		if number := l.first + uint64(i); number < tail {
			t.want(e, found[e], "written before the harvest")
		} else {
			still = append(still, flight{number: number, entry: e, wasSeen: found[e]})
		}
	}
	l.flying = still
	l.entries = append(l.entries[:0], l.entries[n:]...)
	l.first = head
}
