package guestmem

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// modelServer answers the faults of a space with what its pages held at first, or
// zeroes where they were removed, and follows them when they move.
type modelServer struct {
	t      *testing.T
	m      *Monitor
	first  map[addr.GVA]byte // what each page begins with; absent: it is gone
	family *sync.WaitGroup
}

func (s *modelServer) run(ctx context.Context) {
	defer s.family.Done()
	for s.m.Wait(ctx) == nil {
		// One at a time: what is installed for a fault must not be older than an
		// event that was read.
		var e [1]MonitorEvent
		n, err := s.m.Read(e[:])
		if err != nil {
			return
		}
		if n == 1 {
			s.handle(ctx, &e[0])
		}
	}
}

func (s *modelServer) handle(ctx context.Context, e *MonitorEvent) {
	switch e.Kind {
	case uffd.EventFault:
		s.serve(ctx, e)
	case uffd.EventFork:
		c := &modelServer{t: s.t, m: e.Child, first: map[addr.GVA]byte{}, family: s.family}
		for gva, b := range s.first {
			c.first[gva] = b
		}
		s.family.Add(1)
		go c.run(ctx)
	case uffd.EventRemap:
		for off := addr.GVA(0); off < addr.GVA(e.Len); off += page {
			b, ok := s.first[e.From+off]
			delete(s.first, e.To+off)
			if ok {
				s.first[e.To+off] = b
			}
		}
	case uffd.EventRemove:
		for gva := e.Start; gva < e.End; gva += page {
			if _, ok := s.first[gva]; ok {
				s.first[gva] = 0
			}
		}
	case uffd.EventUnmap:
		for gva := e.Start; gva < e.End; gva += page {
			delete(s.first, gva)
		}
	}
}

// serve answers one fault. What it cannot install now, it answers after the next
// events.
func (s *modelServer) serve(ctx context.Context, e *MonitorEvent) {
	for ctx.Err() == nil {
		gva := e.Addr
		var err error
		if b, ok := s.first[gva]; e.Flags&uffd.FaultWP != 0 {
			err = s.m.WriteProtect(gva, page, 0)
		} else if !ok {
			err = s.m.Wake(gva, page)
		} else {
			var p [page]byte
			for i := range p {
				p[i] = b
			}
			_, err = s.m.Copy(gva, p[:], 0)
		}
		switch {
		case err == nil, errors.Is(err, ErrGone), errors.Is(err, ErrClosed):
			return
		case errors.Is(err, ErrAgain):
			var more [1]MonitorEvent
			if n, _ := s.m.Read(more[:]); n == 1 {
				s.handle(ctx, &more[0])
			} else {
				time.Sleep(50 * time.Microsecond)
			}
		default: // it is there, or no longer registered
			_ = s.m.Wake(gva, page)
			return
		}
	}
}

// modelGuest is a space whose every byte is known, one byte a page.
type modelGuest struct {
	t    *testing.T
	as   *AddressSpace
	want map[addr.GVA]byte // of mapped pages
	seed *rand.Rand
}

const servedBase, servedPages = addr.GVA(0x400000), 48

func (g *modelGuest) page() addr.GVA { return servedBase + addr.GVA(g.seed.IntN(servedPages))*page }

func (g *modelGuest) check(gva addr.GVA) {
	var p [page]byte
	n, err := g.as.ReadAt(ctx, p[:], gva)
	want, mapped := g.want[gva]
	switch {
	case !mapped && !errors.Is(err, ErrNotMapped):
		g.t.Errorf("%v is not mapped, and reads %d bytes, %v", gva, n, err)
	case mapped && (err != nil || p[0] != want || p[page-1] != want):
		g.t.Errorf("%v reads %d…%d, %v, want %d", gva, p[0], p[page-1], err, want)
	}
}

func (g *modelGuest) step(m *Monitor, depth int) {
	at, n := g.page(), addr.GVA(1+g.seed.IntN(6))
	end := min(at+n*page, servedBase+servedPages*page)
	length := uint64(end - at)
	each := func(fn func(gva addr.GVA)) {
		for gva := at; gva < end; gva += page {
			if _, ok := g.want[gva]; ok {
				fn(gva)
			}
		}
	}
	switch k := g.seed.IntN(20); {
	case k < 6:
		each(g.check)
	case k < 10:
		b := byte(g.seed.Uint32())
		each(func(gva addr.GVA) {
			var p [page]byte
			for i := range p {
				p[i] = b
			}
			if _, err := g.as.WriteAt(ctx, p[:], gva); err != nil {
				g.t.Errorf("write at %v: %v", gva, err)
			}
			g.want[gva] = b
		})
	case k < 12:
		_ = g.as.Discard(at, length)
		each(func(gva addr.GVA) { g.want[gva] = 0 })
	case k < 13:
		mustDo(g.t, g.as.Unmap(at, length))
		each(func(gva addr.GVA) { delete(g.want, gva) })
	case k < 14: // a new area that nobody watches
		_, err := g.as.Map(ctx, MapOptions{Addr: at, Length: length, Prot: ProtRead | ProtWrite, Flags: MapPrivate | MapAnonymous | MapFixed})
		mustDo(g.t, err)
		for gva := at; gva < end; gva += page {
			g.want[gva] = 0
		}
	case k < 16:
		to := g.page()
		if to+addr.GVA(length) > servedBase+servedPages*page {
			return
		}
		if _, err := g.as.Remap(ctx, RemapOptions{Addr: at, OldLength: length, NewLength: length, Flags: RemapMayMove | RemapFixed, NewAddr: to}); err == nil {
			moved := map[addr.GVA]byte{}
			each(func(gva addr.GVA) { moved[gva-at+to] = g.want[gva]; delete(g.want, gva) })
			for gva := to; gva < to+addr.GVA(length); gva += page {
				delete(g.want, gva)
			}
			for gva, b := range moved {
				g.want[gva] = b
			}
		} else { // part of it may have been done: begin anew
			mustDo(g.t, g.as.Unmap(servedBase, servedPages*page))
			clear(g.want)
		}
	case k < 17 && depth < 2:
		c, err := g.as.Fork()
		mustDo(g.t, err)
		child := &modelGuest{g.t, c, map[addr.GVA]byte{}, g.seed}
		for gva, b := range g.want {
			child.want[gva] = b
		}
		for range 8 {
			child.step(nil, depth+1)
		}
		for gva := range child.want {
			child.check(gva)
		}
		mustDo(g.t, c.Close())
	case m != nil:
		if err := m.WriteProtect(at, length, uffd.Armed); err != nil && !errors.Is(err, ErrAgain) && !errors.Is(err, errUnregistered) {
			g.t.Errorf("arm: %v", err)
		}
	}
}

// Random changes of an address space whose pages a server brings, beside readers of
// its own: every byte is what the model says, on both sides of every fork, and at the
// end every count is right.
func TestMonitorModel(t *testing.T) {
	for _, features := range []uffd.Features{everyEvent, everyEvent | uffd.FeatureWPUnpopulated} {
		for seed := range uint64(4) {
			monitorModel(t, features, seed)
		}
	}
}

func monitorModel(t *testing.T, features uffd.Features, seed uint64) {
	as := newSpace(t, newMemory(t, 8<<20))
	g := &modelGuest{t, as, map[addr.GVA]byte{}, rand.New(rand.NewPCG(seed, 1))}
	ctx, cancel := context.WithCancel(ctx)
	var family sync.WaitGroup
	defer family.Wait()
	defer cancel()
	var servers []*Monitor
	begin := func() {
		mapAt(t, as, servedBase, servedPages*page, ProtNone) // or the reader brings zeroes before it is registered
		m, err := as.NewMonitor(MonitorOptions{Features: features})
		mustDo(t, err)
		servers = append(servers, m)
		s := &modelServer{t: t, m: m, first: map[addr.GVA]byte{}, family: &family}
		for i := range addr.GVA(servedPages) {
			gva := servedBase + i*page
			g.want[gva] = byte(i)*3 + 1
			s.first[gva] = g.want[gva]
		}
		_, err = m.Register(servedBase, servedPages*page, uffd.Missing|uffd.WP)
		mustDo(t, err)
		family.Add(1)
		go s.run(ctx)
		mustDo(t, as.Protect(servedBase, servedPages*page, ProtRead|ProtWrite))
	}
	defer func() {
		for _, m := range servers {
			m.Close()
		}
	}()
	begin()
	family.Add(1)
	go func() { // reads, and minds nothing
		defer family.Done()
		var p [3 * page]byte
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = as.ReadAt(ctx, p[:], servedBase+addr.GVA(i%servedPages)*page)
		}
	}()
	for i := range 400 {
		g.step(servers[len(servers)-1], 0)
		if t.Failed() {
			t.Fatalf("features %v, seed %d, step %d", features, seed, i)
		}
		if i%50 == 49 { // another monitor, and all pages again
			mustDo(t, servers[len(servers)-1].Close())
			mustDo(t, as.Unmap(servedBase, servedPages*page))
			begin()
		}
	}
	for gva := range g.want {
		g.check(gva)
	}
}
