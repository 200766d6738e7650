package guestmem

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// FuzzDevice is TestDeviceModel on drawn bytes.
func FuzzDevice(f *testing.F) {
	f.Add([]byte("some bytes to begin with, that draw a few operations of all kinds"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 2000 {
			newDeviceModel(t).run(data)
		}
	})
}

// Random operations on address spaces that map a device beside memory of their own do
// what a model says, with every count right after each.
func TestDeviceModel(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for seed := range rounds {
		data := make([]byte, 600)
		x := uint64(seed)*0x9e3779b97f4a7c15 + 1
		for i := range data {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			data[i] = byte(x)
		}
		if newDeviceModel(t).run(data); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// The model's window lies over the end of a leaf table, so that tables are cut off.
const (
	deviceWindow            = 40
	deviceWindowAt addr.GVA = 0x40000000 - 20*page
)

// modelledPage is what a page of an address space is.
type modelledPage struct {
	mapped, device bool

	prot  Prot
	index int    // of the device
	value uint64 // of memory of its own
}

type modelledSpace struct {
	as    *AddressSpace
	pages [deviceWindow]modelledPage
	snap  *SpaceSnapshot
	kept  [deviceWindow]modelledPage
}

type deviceModel struct {
	t      *testing.T
	m      *Memory
	o      *Object
	card   [devicePages]uint64
	spaces []*modelledSpace
	data   []byte
}

func newDeviceModel(t *testing.T) *deviceModel {
	m, err := NewMemory(MemoryOptions{Size: 1 << 20})
	mustDo(t, err)
	d := &deviceModel{t: t, m: m}
	_, d.o = newDevice(t, m)
	as, err := m.NewAddressSpace(SpaceOptions{})
	mustDo(t, err)
	d.spaces = []*modelledSpace{{as: as}}
	return d
}

func (d *deviceModel) draw(n int) int {
	if len(d.data) == 0 {
		return 0
	}
	b := int(d.data[0])
	d.data = d.data[1:]
	return b % n
}

func (d *deviceModel) run(data []byte) {
	d.data = data
	for len(d.data) > 0 && !d.t.Failed() {
		d.step()
		d.compare()
	}
	for _, s := range d.spaces {
		d.end(s)
	}
	d.o.Close()
	mustCheck(d.t, d.m)
	if s := d.m.Stats(); s.FramesInUse != 0 {
		d.t.Errorf("left over: %+v", s)
	}
	mustDo(d.t, d.m.Close())
}

func (d *deviceModel) end(s *modelledSpace) {
	if s.snap != nil {
		mustDo(d.t, s.snap.Close())
	}
	mustDo(d.t, s.as.Close())
}

func windowAt(i int) addr.GVA { return deviceWindowAt + addr.GVA(i)*page }

func (d *deviceModel) step() {
	s := d.spaces[d.draw(len(d.spaces))]
	i := d.draw(deviceWindow)
	n := 1 + d.draw(min(12, deviceWindow-i))
	prot := [...]Prot{ProtRead | ProtWrite, ProtRead | ProtWrite, ProtRead, ProtNone, ProtRead | ProtExec}[d.draw(5)]
	switch d.draw(12) {
	case 0, 1:
		first := d.draw(devicePages - n + 1)
		mapDevice(d.t, s.as, d.o, windowAt(i), first, n, prot)
		for k := range n {
			s.pages[i+k] = modelledPage{mapped: true, device: true, prot: prot, index: first + k}
		}
	case 2:
		_, err := s.as.Map(ctx, MapOptions{Addr: windowAt(i), Length: uint64(n) * page, Prot: prot, Flags: MapPrivate | MapAnonymous | MapFixed})
		mustDo(d.t, err)
		for k := range n {
			s.pages[i+k] = modelledPage{mapped: true, prot: prot}
		}
	case 3:
		mustDo(d.t, s.as.Unmap(windowAt(i), uint64(n)*page))
		clear(s.pages[i : i+n])
	case 4:
		d.protect(s, i, n, prot)
	case 5:
		d.move(s, i, n)
	case 6:
		d.fork(s)
	case 7:
		if len(d.spaces) > 1 {
			k := d.draw(len(d.spaces))
			d.end(d.spaces[k])
			d.spaces = append(d.spaces[:k], d.spaces[k+1:]...)
		}
	case 8:
		d.keep(s)
	case 9: // through the region
		v := uint64(d.draw(256))<<8 | 1
		k := d.draw(devicePages)
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		_, err := d.m.WriteAt(b[:], deviceBase+addr.GPA(8+k)*page)
		mustDo(d.t, err)
		d.card[k] = v
	default:
		d.store(s, i, uint64(d.draw(256))<<16|2)
	}
}

func (d *deviceModel) protect(s *modelledSpace, i, n int, prot Prot) {
	err := s.as.Protect(windowAt(i), uint64(n)*page, prot)
	for k := range n {
		if !s.pages[i+k].mapped {
			if !errors.Is(err, ErrNoSpace) {
				d.t.Errorf("protect over a hole: %v", err)
			}
			return
		}
		s.pages[i+k].prot = prot
	}
	mustDo(d.t, err)
}

// move moves pages that are mapped, all of them, to where they do not overlap.
func (d *deviceModel) move(s *modelledSpace, i, n int) {
	to := d.draw(deviceWindow - n + 1)
	if to < i+n && i < to+n {
		return
	}
	for k := range n {
		if !s.pages[i+k].mapped {
			return
		}
	}
	_, err := s.as.Remap(ctx, RemapOptions{Addr: windowAt(i), OldLength: uint64(n) * page, NewLength: uint64(n) * page, NewAddr: windowAt(to), Flags: RemapMayMove | RemapFixed})
	mustDo(d.t, err)
	copy(s.pages[to:to+n], s.pages[i:i+n])
	clear(s.pages[i : i+n])
}

func (d *deviceModel) fork(s *modelledSpace) {
	if len(d.spaces) == 4 {
		return
	}
	child, err := s.as.Fork()
	mustDo(d.t, err)
	d.spaces = append(d.spaces, &modelledSpace{as: child, pages: s.pages})
}

// keep takes a snapshot, or goes back to the one there is.
func (d *deviceModel) keep(s *modelledSpace) {
	if s.snap == nil {
		snap, err := s.as.Snapshot()
		mustDo(d.t, err)
		s.snap, s.kept = snap, s.pages
		return
	}
	mustDo(d.t, s.as.Rollback(context.Background(), s.snap))
	s.pages = s.kept
	if d.draw(2) == 0 {
		mustDo(d.t, s.snap.Close())
		s.snap = nil
	}
}

func (d *deviceModel) store(s *modelledSpace, i int, v uint64) {
	p := &s.pages[i]
	err := s.as.Store64(ctx, windowAt(i), v)
	switch {
	case !p.mapped || p.prot&ProtWrite == 0:
		if err == nil {
			d.t.Errorf("a store to %v, which is %+v", windowAt(i), *p)
		}
	case err != nil:
		d.t.Errorf("store to %v: %v", windowAt(i), err)
	case p.device:
		d.card[p.index] = v
	default:
		p.value = v
	}
}

// compare compares every page with the model, as Go code sees it and as a vCPU would.
func (d *deviceModel) compare() {
	mustCheck(d.t, d.m)
	for n, s := range d.spaces {
		leaves := map[addr.GVA]pagetable.Entry{}
		s.as.pt.Visit(leafMap(leaves))
		for i := range s.pages {
			p := &s.pages[i]
			var b [8]byte
			_, err := s.as.ReadAt(ctx, b[:], windowAt(i)) // by a copy, not by a word
			got, want := binary.LittleEndian.Uint64(b[:]), p.value
			if p.device {
				want = d.card[p.index]
			}
			if ok := p.mapped && p.prot != ProtNone; ok != (err == nil) || ok && got != want {
				d.t.Errorf("space %d, page %d: %#x, %v, want %#x (%+v)", n, i, got, err, want, *p)
			}
			if e := leaves[windowAt(i)]; e.Has(pagetable.Present) {
				if e.IsSpecial() != p.device {
					d.t.Errorf("space %d, page %d: leaf %#x (%+v)", n, i, uint64(e), *p)
				}
				if p.device && e.Frame().GPA() != deviceBase+addr.GPA(8+p.index)*page {
					d.t.Errorf("space %d, page %d: leaf %#x leads to %v, page %d of the device", n, i, uint64(e), e.Frame().GPA(), p.index)
				}
			}
		}
	}
	// And as a vCPU does, by faulting in.
	for _, s := range d.spaces {
		if i := d.draw(deviceWindow); s.pages[i].device && s.pages[i].prot != ProtNone {
			access := Read
			if s.pages[i].prot&ProtWrite != 0 {
				access = Write
			}
			mustDo(d.t, s.as.Fault(ctx, windowAt(i), access))
		}
	}
}

type leafMap map[addr.GVA]pagetable.Entry

func (leafMap) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }
func (v leafMap) VisitLeaf(at addr.GVA, e pagetable.Entry)     { v[at] = e }
