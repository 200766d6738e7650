//go:build linux && amd64

package machine

import (
	"encoding/binary"
	"fmt"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Model is what the guest says that it has written.
type Model struct {
	areas   map[uint64]*modelArea
	ledgers [guest.VCPUs]ledger
}

type modelArea struct {
	guest.Area
	gens []uint32 // how often each page was written since it was zero
}

// ledger is what was fetched of a vCPU's.
type ledger struct {
	next    uint64        // number of the entry that is fetched next
	entries []guest.Entry // fetched, and not yet accounted for by a harvest, if there are harvests
	first   uint64        // number of entries[0]
	flying  []flight      // begun before the end of a harvest, not done at its beginning
}

// flight is an entry whose write some harvest has seen a part of, or not.
type flight struct {
	number  uint64
	entry   guest.Entry
	wasSeen bool
}

func newModel(areas ...guest.Area) *Model {
	m := &Model{areas: make(map[uint64]*modelArea)}
	for _, a := range areas {
		m.add(a)
	}
	return m
}

func (m *Model) add(a guest.Area) {
	m.areas[a.ID] = &modelArea{Area: a, gens: make([]uint32, a.Pages)}
}

func (m *Model) remove(id uint64) { delete(m.areas, id) }

func (m *Model) discard(id, first, n uint64) { clear(m.areas[id].gens[first : first+n]) }

// clone returns the model of a clone's memory. Nothing is in flight.
func (m *Model) clone() *Model {
	out := &Model{areas: make(map[uint64]*modelArea)}
	for id, a := range m.areas {
		out.areas[id] = &modelArea{Area: a.Area, gens: append([]uint32(nil), a.gens...)}
	}
	for i, l := range m.ledgers {
		out.ledgers[i] = ledger{next: l.next, first: l.next}
	}
	return out
}

// Written returns how often pages of an area were written.
func (m *Model) Written(id uint64) (n uint64) {
	if a := m.areas[id]; a != nil {
		for _, gen := range a.gens {
			n += uint64(gen)
		}
	}
	return n
}

// fetch reads what the ledgers have more.
func (g *Guest) fetch() error {
	g.reading.Lock()
	defer g.reading.Unlock()
	for id := range g.Model.ledgers {
		head, err := g.Memory.Load64(control(uint64(id)) + guest.ControlHead)
		if err != nil {
			return err
		}
		if err := g.fetchTo(id, head); err != nil {
			return err
		}
	}
	return nil
}

// fetchTo reads a ledger up to entry head, and lets the guest use the room.
func (g *Guest) fetchTo(id int, head uint64) error {
	l := &g.Model.ledgers[id]
	if head < l.next || head-l.next > guest.LedgerEntries {
		return fmt.Errorf("vCPU %d: ledger goes from %d to %d", id, l.next, head)
	}
	base := guest.LedgerBase + addr.GPA(id*guest.LedgerSize)
	for l.next < head {
		at := l.next % guest.LedgerEntries
		n := min(head-l.next, guest.LedgerEntries-at)
		b := make([]byte, 8*n)
		if _, err := g.Memory.ReadAt(b, base+addr.GPA(8*at)); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[8:] {
			e := guest.Entry(binary.LittleEndian.Uint64(b))
			a := g.Model.areas[e.Area()]
			if a == nil || e.Page() >= a.Pages {
				return fmt.Errorf("vCPU %d: ledger entry %d is of page %d of area %d", id, l.next, e.Page(), e.Area())
			}
			a.gens[e.Page()]++
			if g.harvested {
				l.entries = append(l.entries, e)
			}
			l.next++
		}
	}
	if !g.harvested {
		l.first = l.next
	}
	return g.Memory.Store64(control(uint64(id))+guest.ControlConsumed, l.next)
}

// CompareTables compares what the guest has noted for each page with the model,
// and returns how many differ. The vCPUs wait at their doorbells.
func (g *Guest) CompareTables() (differ uint64, err error) {
	for _, a := range g.Model.areas {
		b := make([]byte, 8*a.Pages)
		if _, err := g.Memory.ReadAt(b, a.Table); err != nil {
			return 0, err
		}
		for i, want := range a.gens {
			if uint32(binary.LittleEndian.Uint64(b[8*i:])) != want {
				differ++
			}
		}
	}
	return differ, nil
}
