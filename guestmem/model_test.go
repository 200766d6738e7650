package guestmem

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The model of an address space is a byte a page: what its first byte must read
// as. A family of address spaces is driven by random operations beside it.

const (
	modelBase  addr.GVA = 0x40000000 - 8*page // over the border of two leaf tables
	modelPages          = 24
)

type modelPage struct {
	mapped bool
	prot   Prot
	value  *byte // shared areas: the same for all who map it
	shared bool
}

type modelSpace struct {
	as    *AddressSpace
	pages [modelPages]modelPage
}

func (s *modelSpace) fork(child *AddressSpace) *modelSpace {
	c := &modelSpace{as: child, pages: s.pages}
	for i := range c.pages {
		if p := &c.pages[i]; p.mapped && !p.shared {
			p.value = new(byte)
			*p.value = *s.pages[i].value
		}
	}
	return c
}

func at(i int) addr.GVA { return modelBase + addr.GVA(i)*page }

func TestFamilyAgainstModel(t *testing.T) { testFamily(t, nil) }

// testFamily runs the family. prepare, if not nil, is told of its memory, and
// returns what is to be called after each operation.
func testFamily(t *testing.T, prepare func(*rapid.T, *Memory) (after func(*rapid.T))) {
	rapid.Check(t, func(rt *rapid.T) {
		m, err := NewMemory(MemoryOptions{Size: 8 << 20, Grow: 64 << 10, KeepFree: 128 << 10})
		if err != nil {
			rt.Fatal(err)
		}
		after := func(*rapid.T) {}
		if prepare != nil {
			after = prepare(rt, m)
		}
		first, err := m.NewAddressSpace(SpaceOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		spaces := []*modelSpace{{as: first}}
		defer func() {
			for _, s := range spaces {
				s.as.Close()
			}
			if err := m.Check(); err != nil {
				rt.Error(err)
			}
			if st := m.Stats(); st.FramesInUse != 0 {
				rt.Errorf("left in use: %+v", st)
			}
			m.Close()
		}()
		next := byte(0)
		space := func(rt *rapid.T) *modelSpace { return spaces[rapid.IntRange(0, len(spaces)-1).Draw(rt, "space")] }
		pages := func(rt *rapid.T) (int, int) {
			i := rapid.IntRange(0, modelPages-1).Draw(rt, "page")
			return i, rapid.IntRange(1, min(6, modelPages-i)).Draw(rt, "pages")
		}
		prots := rapid.SampledFrom([]Prot{ProtNone, ProtRead, ProtRead | ProtWrite, ProtRead | ProtWrite, ProtRead | ProtExec})
		rt.Repeat(map[string]func(*rapid.T){
			"map": func(rt *rapid.T) {
				s, prot, shared := space(rt), prots.Draw(rt, "prot"), rapid.Bool().Draw(rt, "shared")
				i, n := pages(rt)
				flags := MapFixed | MapAnonymous | MapPrivate
				if shared {
					flags = MapFixed | MapAnonymous | MapShared
				}
				if _, err := s.as.Map(ctx, MapOptions{Addr: at(i), Length: uint64(n) * page, Prot: prot, Flags: flags}); err != nil {
					rt.Fatal(err)
				}
				for k := i; k < i+n; k++ {
					s.pages[k] = modelPage{mapped: true, prot: prot, shared: shared, value: new(byte)}
				}
			},
			"unmap": func(rt *rapid.T) {
				s := space(rt)
				i, n := pages(rt)
				if err := s.as.Unmap(at(i), uint64(n)*page); err != nil {
					rt.Fatal(err)
				}
				for k := i; k < i+n; k++ {
					s.pages[k] = modelPage{}
				}
			},
			"protect": func(rt *rapid.T) {
				s, prot := space(rt), prots.Draw(rt, "prot")
				i, n := pages(rt)
				err := s.as.Protect(at(i), uint64(n)*page, prot)
				whole := true
				for k := i; k < i+n; k++ {
					if !s.pages[k].mapped {
						whole = false
						break
					}
					s.pages[k].prot = prot
				}
				if whole != (err == nil) {
					rt.Fatalf("Protect: %v; all mapped: %v", err, whole)
				}
			},
			"discard": func(rt *rapid.T) {
				s := space(rt)
				i, n := pages(rt)
				_ = s.as.Discard(at(i), uint64(n)*page)
				for k := i; k < i+n; k++ {
					if p := &s.pages[k]; p.mapped && !p.shared {
						p.value = new(byte)
					}
				}
			},
			"write": func(rt *rapid.T) {
				s := space(rt)
				i, _ := pages(rt)
				next++
				_, err := s.as.WriteAt(ctx, []byte{next}, at(i)+7)
				p := &s.pages[i]
				can := p.mapped && p.prot&ProtWrite != 0
				if can != (err == nil) {
					rt.Fatalf("write to page %d (%+v): %v", i, *p, err)
				}
				if can {
					*p.value = next
				}
			},
			"fork": func(rt *rapid.T) {
				if len(spaces) == 5 {
					rt.Skip("family is large enough")
				}
				s := space(rt)
				child, err := s.as.Fork()
				if err != nil {
					rt.Fatal(err)
				}
				spaces = append(spaces, s.fork(child))
			},
			"close": func(rt *rapid.T) {
				if len(spaces) == 1 {
					rt.Skip("the last one")
				}
				i := rapid.IntRange(0, len(spaces)-1).Draw(rt, "space")
				if err := spaces[i].as.Close(); err != nil {
					rt.Fatal(err)
				}
				spaces = append(spaces[:i], spaces[i+1:]...)
			},
			"pin and fork": func(rt *rapid.T) {
				s := space(rt)
				i, _ := pages(rt)
				p := &s.pages[i]
				pin, err := s.as.Pin(ctx, addr.Range{Start: at(i), End: at(i) + 1}, Read)
				if err != nil {
					if p.mapped && p.prot != ProtNone || !errors.Is(err, ErrNotMapped) && !errors.Is(err, ErrAccess) {
						rt.Fatalf("pin page %d (%+v): %v", i, *p, err)
					}
					return
				}
				defer pin.Release()
				child, err := s.as.Fork()
				if err != nil {
					rt.Fatal(err)
				}
				defer child.Close()
				next++
				m.arena.Bytes(pin.Frames()[0])[7] = next // the device writes
				before := *p.value
				*p.value = next
				want := before
				if p.shared {
					want = next
				}
				checkByte(rt, child, i, want)
				checkByte(rt, s.as, i, next)
			},
			"": func(rt *rapid.T) {
				after(rt)
				for _, s := range spaces {
					// Not all of them each time, so that pages stay untouched too.
					look := rapid.Uint32().Draw(rt, "look")
					for i, p := range s.pages {
						if look>>i&1 == 0 {
							continue
						}
						var b [1]byte
						_, err := s.as.ReadAt(ctx, b[:], at(i)+7)
						can := p.mapped && p.prot != ProtNone
						if can != (err == nil) {
							rt.Fatalf("read page %d (%+v): %v", i, p, err)
						}
						if can && b[0] != *p.value {
							rt.Fatalf("page %d reads %d, want %d", i, b[0], *p.value)
						}
					}
				}
				if err := m.Check(); err != nil {
					rt.Fatal(err)
				}
				after(rt)
			},
		})
	})
}

func checkByte(rt *rapid.T, as *AddressSpace, i int, want byte) {
	var b [1]byte
	if _, err := as.ReadAt(ctx, b[:], at(i)+7); err != nil || !bytes.Equal(b[:], []byte{want}) {
		rt.Fatalf("page %d reads %d (%v), want %d", i, b[0], err, want)
	}
}
