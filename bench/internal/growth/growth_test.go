package growth

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

var decades = []float64{10, 100, 1e3, 1e4, 1e5, 1e6}

// curve returns the costs of f with some noise.
func curve(rng *rand.Rand, sizes []float64, f func(n float64) float64) (points []Point) {
	for _, n := range sizes {
		points = append(points, Point{n, f(n) * (0.95 + 0.1*rng.Float64())})
	}
	return points
}

func TestFind(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for want, f := range map[string]func(n float64) float64{
		"O(1)":       func(float64) float64 { return 1500 },
		"O(log n)":   func(n float64) float64 { return 5 + 30*math.Log2(n) },
		"O(√n)":      func(n float64) float64 { return 20 + 3*math.Sqrt(n) },
		"O(n)":       func(n float64) float64 { return 1400 + 0.8*n },
		"O(n log n)": func(n float64) float64 { return 3 * n * math.Log2(n) },
		"O(n²)":      func(n float64) float64 { return 100 + n*n/4 },
	} {
		for range 20 {
			points := curve(rng, decades, f)
			if got := Find(points); got.Name != want {
				t.Errorf("%v: %v, off %.2f, want %s", points, got, got.Off, want)
			}
		}
	}
}

// What caches do to a constant is no growth, and what falls is none either.
func TestConstantWithASlope(t *testing.T) {
	for _, costs := range [][]float64{{1.5, 1.4, 1.6, 1.5, 1.7, 1.7}, {9, 7, 6, 6, 6, 6}} {
		var points []Point
		for i, n := range decades {
			points = append(points, Point{n, costs[i]})
		}
		if got := Find(points); got.Name != "O(1)" {
			t.Errorf("%v: %v", costs, got)
		}
	}
}

func TestFindOfTooFew(t *testing.T) {
	if got := Find([]Point{{1, 1}, {2, 2}}); got.String() != "too few points" {
		t.Errorf("got %v", got)
	}
}

func TestWhatJumpsHasNoOrder(t *testing.T) {
	if got := Find([]Point{{1, 2}, {1e2, 5}, {1e3, 90}, {1e4, 61}, {1e6, 76}}); !strings.HasPrefix(got.String(), "no order fits") {
		t.Errorf("got %v, off %.2f", got, got.Off)
	}
}

func TestWrite(t *testing.T) {
	g := Growth{
		Name: "memory/fork", What: "a fork", Of: "bytes",
		Curves: []Curve{
			{Name: "ours", Points: []Point{{1 << 20, 1500}, {1 << 30, 1500}, {1 << 40, 1600}}},
			{Name: "theirs", Points: []Point{{1 << 20, 1e3}, {1 << 30, 1e6}}, Missing: "at 1 Ti: out of memory"},
			{Name: "nobody", Missing: "it does not build"},
		},
		Noisy: "busy",
	}
	var out bytes.Buffer
	if err := g.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"growth/memory/fork: a fork", "1 Mi", "1 Ti", "1.6 µs", "O(1) (x 1.1 in all)", "1 ms", "theirs: at 1 Ti: out of memory", "nobody: it does not build", "~ busy"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestGroup(t *testing.T) {
	for n, want := range map[int64]string{1: "1", 999: "999", 30000: "30 000", 1000000: "1 000 000", 1 << 25: "32 Mi"} {
		if got := group(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
