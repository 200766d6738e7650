package vmarea_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/vmarea"
)

// benchBounds is a whole user half.
var benchBounds = addr.Range{Start: 0x10000, End: 0x7ffffffff000}

// spread returns a tree of n areas of two pages, five pages apart, which are mapped one change each, in order of the slots given.
func spread(n int, slots func(i int) int) *vmarea.Tree {
	t := vmarea.New(benchBounds)
	for i := range n {
		change(t, func(c *vmarea.Change) { c.Insert(slot(slots(i)), vmarea.Attr{Prot: rw}) })
	}
	return t
}

func slot(i int) addr.Range {
	start := benchBounds.Start + addr.GVA(1+5*i)*page
	return addr.Range{Start: start, End: start + 2*page}
}

func upwards(i int) int { return i }

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 10, 1000, 30000} {
		b.Run(fmt.Sprintf("areas=%d", n), func(b *testing.B) {
			t := spread(n, upwards)
			rng := rand.New(rand.NewPCG(1, 2))
			at := make([]addr.GVA, 1024)
			for i := range at {
				at[i] = slot(rng.IntN(n)).Start + page
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				a, s := t.StartRead(at[i%len(at)])
				if s != vmarea.Found {
					b.Fatal(s)
				}
				t.EndRead(a)
				i++
			}
		})
	}
}

func BenchmarkInsertRemove(b *testing.B) {
	// Between two areas, and touching neither.
	behind := func(area addr.Range) addr.Range {
		return addr.Range{Start: area.End + page, End: area.End + 2*page}
	}
	benchChanges(b, behind, func(t *vmarea.Tree, r addr.Range) {
		c := t.StartChange()
		c.Insert(r, vmarea.Attr{Prot: ro})
		c.Publish()
		c.EndWriteAll()
		c = t.StartChange()
		c.Remove(r)
		c.StartWrite(r)
		c.Publish()
		c.EndWriteAll()
	})
}

// BenchmarkProtect splits an area in three and merges it again.
func BenchmarkProtect(b *testing.B) {
	within := func(area addr.Range) addr.Range {
		return addr.Range{Start: area.Start + page, End: area.End}
	}
	benchChanges(b, within, func(t *vmarea.Tree, r addr.Range) {
		for _, p := range [2]vmarea.Prot{ro, rw} {
			c := t.StartChange()
			c.SetProt(r, p)
			c.StartWrite(r)
			c.Publish()
			c.EndWriteAll()
		}
	})
}

// benchChanges changes ranges that lie somewhere about areas taken at random.
func benchChanges(b *testing.B, where func(area addr.Range) addr.Range, change func(*vmarea.Tree, addr.Range)) {
	for _, n := range []int{10, 1000, 30000} {
		b.Run(fmt.Sprintf("areas=%d", n), func(b *testing.B) {
			t := spread(n, upwards)
			rng := rand.New(rand.NewPCG(1, 2))
			at := make([]addr.Range, 1024)
			for i := range at {
				at[i] = where(slot(rng.IntN(n)))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				change(t, at[i%len(at)])
				i++
			}
		})
	}
}

func BenchmarkFindGap(b *testing.B) {
	for _, n := range []int{10, 1000, 30000} {
		for _, align := range []uint64{page, 2 << 20} {
			b.Run(fmt.Sprintf("areas=%d/align=%d", n, align), func(b *testing.B) {
				t := spread(n, upwards)
				c := t.StartChange()
				// Nothing fits but what is above all areas: every hole
				// between them is too short.
				b.ReportAllocs()
				for b.Loop() {
					if _, ok := c.FindGap(16*page, align, 0, benchBounds.End, vmarea.BottomUp); !ok {
						b.Fatal("no gap")
					}
				}
				c.Abort()
			})
		}
	}
}

func BenchmarkFork(b *testing.B) {
	for _, n := range []int{1, 30000} {
		b.Run(fmt.Sprintf("areas=%d", n), func(b *testing.B) {
			t := spread(n, upwards)
			b.ReportAllocs()
			for b.Loop() {
				c := t.StartChange()
				c.StartWriteAll()
				c.Fork()
				c.EndWriteAll()
			}
		})
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	tree := spread(1000, upwards)
	snapshot := tree.Snapshot()
	for what, fn := range map[string]func(){
		"StartRead of an area": func() {
			a, _ := tree.StartRead(slot(500).Start)
			tree.EndRead(a)
		},
		"StartRead of a hole": func() { tree.StartRead(slot(500).End) },
		"Snapshot.Find":       func() { snapshot.Find(slot(500).Start) },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}

// heapPerArea is the limit, with a hole beside every area, so that the
// hole index is as large as it gets.
const heapPerArea = 140

func TestHeapPerArea(t *testing.T) {
	if invariants.Enabled {
		t.Skip("areas are larger under -tags invariants and -race")
	}
	const n = 30000
	perm := rand.New(rand.NewPCG(3, 4)).Perm(n)
	for _, tt := range []struct {
		order string
		slots func(int) int
	}{
		{"upwards", upwards},
		{"downwards", func(i int) int { return n - 1 - i }},
		{"random", func(i int) int { return perm[i] }},
	} {
		before := heap()
		tree := spread(n, tt.slots)
		got := float64(heap()-before) / n
		t.Logf("%s: %.1f bytes per area", tt.order, got)
		if got > heapPerArea {
			t.Errorf("%s: %.1f bytes per area, more than %d", tt.order, got, heapPerArea)
		}
		runtime.KeepAlive(tree)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
