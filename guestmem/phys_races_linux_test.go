package guestmem

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// heapPages returns page-aligned memory of the Go heap: what the race detector
// sees. The embedder's own mapping, to a region.
func heapPages(n int) []byte {
	b := make([]byte, (n+1)*page)
	skip := (page - uint64(hvaOf(b))%page) % page
	return b[skip:][: n*page : n*page]
}

// R1: readers beside regions that come and go never see one that is gone, and
// never fail on one that stays. What is gone is overwritten at once with plain
// stores: a reader still in it would race with them, and see poison.
func TestR1RacesBesideHotChanges(t *testing.T) {
	const (
		stable = addr.GPA(0)
		moving = addr.GPA(1 << 30)
		good   = 0x2a2a2a2a2a2a2a2a
		poison = 0xee
	)
	rounds := 200
	if *soak {
		rounds = 10000
	}
	for _, heap := range []bool{true, false} {
		name := map[bool]string{true: "in the heap", false: "mapped"}[heap]
		t.Run(name, func(t *testing.T) {
			unchangedHost(t)
			m := newPhys(t)
			mustAdd(t, m, RegionOptions{Base: stable, Size: 4 * page, Backing: BackingAnonymous})
			var stop atomic.Bool
			var found, missed atomic.Int64
			var wg sync.WaitGroup
			for k := range runtime.GOMAXPROCS(0) + 1 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(k), 5))
					h := m.NewHandle()
					defer h.Close()
					a, p := m.With(h), make([]byte, 8)
					mine := stable + addr.GPA(k)*512
					for i := uint64(1); !stop.Load(); i++ {
						if i%64 == 0 {
							runtime.Gosched() // the changes have to get on
						}
						if err := a.Store64(mine, i); err != nil {
							t.Errorf("a store to the region that stays: %v", err)
							return
						}
						if v, err := m.Load64(mine); v != i || err != nil {
							t.Errorf("it reads %d, %v; want %d", v, err, i)
							return
						}
						gpa := moving + addr.GPA(rng.IntN(4*page-16))
						n := len(p)
						var err error
						switch rng.IntN(4) {
						case 0:
							_, err = a.Load64(gpa &^ 7)
						case 1:
							// Not where others read by copy: that would be a race of
							// the guest's own.
							_, err = a.CompareAndSwap64(moving+4*page-8, good, good)
						case 2:
							p = p[:1+rng.IntN(8)]
							n, err = m.ReadAt(p, gpa)
						default:
							p = p[:8]
							n, err = a.ReadAt(p, gpa)
						}
						if err != nil {
							if !errors.Is(err, ErrNoRegion) {
								t.Errorf("an access of the region that moves: %v", err)
								return
							}
							missed.Add(1)
							continue
						}
						found.Add(1)
						for _, b := range p[:n] {
							if b == poison {
								t.Error("a reader has seen memory that was taken away")
								return
							}
						}
						p = p[:8]
					}
				})
			}
			backing := heapPages(4)
			for range rounds {
				o := RegionOptions{Base: moving, Size: 4 * page}
				if heap {
					for i := range backing {
						backing[i] = good & 0xff
					}
					o.Backing, o.Mapping = BackingForeign, hvaOf(backing)
				}
				r, err := m.AddRegion(o)
				if err != nil {
					t.Error(err)
					break
				}
				runtime.Gosched()
				if err := m.RemoveRegion(r); err != nil {
					t.Error(err)
					break
				}
				if heap {
					for i := range backing {
						backing[i] = poison
					}
				}
			}
			stop.Store(true)
			wg.Wait()
			t.Logf("%d accesses found the region, %d did not", found.Load(), missed.Load())
		})
	}
}

// Everything at once, on one memory: what each goroutine owns it must find as it
// left it, and at the end nothing is left.
func TestPhysicalTorture(t *testing.T) {
	unchangedHost(t)
	rounds := 400
	if *soak {
		rounds = 40000
	}
	m := newPhys(t)
	var wg sync.WaitGroup
	kinds := []Backing{BackingMemfd, BackingAnonymous, BackingMemfd}
	for k := range kinds {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 9))
			base := addr.GPA(k) << 30
			const size = 16 * page
			var r *Region
			var held []*Slice
			var model [16]byte
			for range rounds {
				if r == nil {
					var err error
					if r, err = m.AddRegion(RegionOptions{Base: base, Size: size, Backing: kinds[k]}); err != nil {
						t.Error(err)
						return
					}
					model = [16]byte{}
				}
				i := rng.IntN(16)
				at := base + addr.GPA(i)*page
				switch d := rng.IntN(20); {
				case d < 8:
					if b, err := m.Load8(at + 100); b != model[i] || err != nil {
						t.Errorf("page %d reads %d, %v; want %d", i, b, err, model[i])
						return
					}
				case d < 13:
					model[i]++
					if err := m.Store8(at+100, model[i]); err != nil {
						t.Error(err)
						return
					}
				case d < 15:
					err := m.Discard(at, page)
					if busy := len(held) > 0; err != nil && !(busy && errors.Is(err, ErrBusy)) {
						t.Error(err)
						return
					}
					if err == nil {
						model[i] = 0
					}
				case d < 17:
					s, err := m.Slice(at, page, Write)
					if err != nil {
						t.Error(err)
						return
					}
					if s.Bytes()[100] != model[i] {
						t.Errorf("a slice of page %d has %d, want %d", i, s.Bytes()[100], model[i])
						return
					}
					held = append(held, s)
				case d < 18:
					if err := m.CollectDirty(r, func(addr.GPA, uint64) {}); err != nil {
						t.Error(err)
						return
					}
				case len(held) > 0:
					held[0].Release()
					held = held[1:]
				default:
					if err := m.RemoveRegion(r); err != nil {
						t.Error(err)
						return
					}
					r = nil
				}
			}
			for _, s := range held {
				s.Release()
			}
		})
	}
	wg.Wait()
}
