package pagetable_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// benchWorld is a space with full leaf tables, whose frames are neighbours or
// are not.
func benchWorld(b *testing.B, nTables int, scattered bool) (*space, addr.GVA) {
	w := newWorld(b, uint64(1024+nTables*2*512), false)
	s := w.newSpace()
	s.fill(nTables, scattered)
	return s, benchBase
}

const benchBase addr.GVA = 3 << 30

func (s *space) fill(nTables int, scattered bool) {
	frames := make([]addr.PFN, 512*nTables)
	if err := s.pool.Alloc(frames); err != nil {
		s.Fatal(err)
	}
	slices.Sort(frames)
	for i := range frames {
		f := frames[i]
		if scattered { // an odd factor: no neighbours, no pairs
			f = frames[i*181%len(frames)]
		}
		l := s.leaf(benchBase + addr.GVA(i)*page)
		if !l.Install(pagetable.LeafEntry(f, userRW|pagetable.Dirty)) {
			s.Fatal("Install")
		}
	}
}

// BenchmarkOwnPath is the tables' part of the first write after a fork to one
// of 64 full leaf tables: a copy of it where the relative is still there, a move
// where it has gone.
func BenchmarkOwnPath(b *testing.B) {
	const nTables = 64
	for _, c := range []struct{ scattered, alone bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		how, frames := "copy", "contiguous"
		if c.alone {
			how = "move"
		}
		if c.scattered {
			frames = "scattered"
		}
		b.Run(fmt.Sprintf("how=%s/frames=%s", how, frames), func(b *testing.B) {
			s, base := benchWorld(b, nTables, c.scattered)
			var child *space
			var spares [nTables]pagetable.Spare
			var gone [nTables]pagetable.Retired
			rest := func() {
				for i := range nTables {
					s.drop(gone[i].All()...)
					gone[i] = pagetable.Retired{}
				}
				if child != nil && !c.alone {
					child.close()
				}
			}
			i := nTables
			b.ReportAllocs()
			for b.Loop() {
				if i == nTables {
					b.StopTimer()
					rest()
					child = s.fork()
					if c.alone {
						child.close()
					}
					for i := range spares {
						for spares[i].Len() < 3 {
							spares[i].Add(s.alloc())
						}
					}
					i = 0
					b.StartTimer()
				}
				gva := base + addr.GVA(i)*leafPT
				s.t.LockTables()
				s.t.PlanPath(gva, 1, true)
				s.t.OwnPath(gva, 1, true, &spares[i], &gone[i])
				s.t.UnlockTables()
				i++
			}
			rest()
			for i := range spares {
				for spares[i].Len() > 0 {
					s.free(spares[i].Take())
				}
			}
		})
	}
}

// BenchmarkShare is the tables' part of a fork.
func BenchmarkShare(b *testing.B) {
	s, _ := benchWorld(b, 64, false)
	b.ReportAllocs()
	for b.Loop() {
		parent, child := s.alloc(), s.alloc()
		var old addr.PFN
		s.change(func(tok pagetable.Token) { old = s.t.Share(tok, parent, child) })
		s.drop(pagetable.Dropped{Frame: old, Level: 4, Moved: true}, pagetable.Dropped{Frame: child, Level: 4})
	}
}

// BenchmarkZap is one page zapped and installed again.
func BenchmarkZap(b *testing.B) {
	s, base := benchWorld(b, 1, false)
	out := pagetable.NewZapped()
	r := addr.Range{Start: base + 7*page, End: base + 8*page}
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		s.change(func(tok pagetable.Token) {
			p := s.t.PlanZap(tok, r, r)
			var spare pagetable.ZapSpare
			s.t.Zap(tok, r, r, p, &spare, out)
			s.t.Rezap(tok, r, out)
		})
		if len(out.Leaves) != 1 || !s.t.Find(r.Start).Install(out.Leaves[0]) {
			b.Fatal("zap or install")
		}
	}
}

// BenchmarkProtect takes write permission from a run of pages and gives it back.
func BenchmarkProtect(b *testing.B) {
	for _, n := range []addr.GVA{1, 512} {
		b.Run(fmt.Sprintf("pages=%d", n), func(b *testing.B) {
			s, base := benchWorld(b, 1, false)
			r := addr.Range{Start: base, End: base + n*page}
			stale := make([]addr.PFN, 0, 512)
			b.ReportAllocs()
			for b.Loop() {
				s.change(func(tok pagetable.Token) {
					p := s.t.PlanProtect(tok, r, pagetable.User)
					var spare pagetable.Spare
					var gone pagetable.Retired
					stale = s.t.Protect(tok, r, pagetable.User, p, &spare, &gone, stale[:0])
				})
				if len(stale) != int(n) {
					b.Fatal("protect")
				}
				b.StopTimer()
				for gva := r.Start; gva < r.End; gva += page {
					s.t.Find(gva).Allow(pagetable.Writable)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkDrop is the end of a space that owned 64 MiB alone.
func BenchmarkDrop(b *testing.B) {
	const nTables = 32
	for _, scattered := range []bool{false, true} {
		b.Run(fmt.Sprintf("scattered=%v", scattered), func(b *testing.B) {
			w := newWorld(b, 1024+nTables*2*512, false)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := w.newSpace()
				s.fill(nTables, scattered)
				b.StartTimer()
				s.close()
			}
		})
	}
}

func BenchmarkTranslate(b *testing.B) {
	s, base := benchWorld(b, 1, false)
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := s.t.Translate(base, userRW); !ok {
				b.Fatal("absent")
			}
		}
	})
	b.Run("next", func(b *testing.B) {
		b.ReportAllocs()
		i := addr.GVA(0)
		for b.Loop() {
			if _, ok := s.t.Translate(base+i&511*page, pagetable.User); !ok {
				b.Fatal("absent")
			}
			i++
		}
	})
}
