package growth

import (
	"math"
	"strings"
)

// An Order is one way to grow.
type Order struct {
	// Name is "O(n log n)".
	Name string
	f    func(n float64) float64
}

func (o Order) String() string { return o.Name }

// Constant is the order of what does not grow.
var Constant = Order{"O(1)", func(float64) float64 { return 0 }}

// orders are from the simplest on.
var orders = []Order{
	Constant,
	{"O(log n)", func(n float64) float64 { return math.Log2(n) }},
	{"O(√n)", math.Sqrt},
	{"O(n)", func(n float64) float64 { return n }},
	{"O(n log n)", func(n float64) float64 { return n * math.Log2(n) }},
	{"O(n²)", func(n float64) float64 { return n * n }},
}

const (
	// fits is how far off, as a share, the points may be on average for an order to
	// fit: caches and noise move single points by that much.
	fits = 0.15
	// better is how much closer a less simple order must come, where none fits.
	better = 1.5
	// hopeless is how far off the best order may be to be named at all.
	hopeless = 0.4
)

// A Point is a cost at a size.
type Point struct{ N, Cost float64 }

// A Fit is the order that was found for some points.
type Fit struct {
	Order
	// Off is how far the points are off the curve, as a share (root mean square).
	Off float64
	// Rise is the last cost over the first.
	Rise float64
}

// String reads "O(1) (x 1.1 in all)".
func (f Fit) String() string {
	if f.Order.Name == "" {
		return "too few points"
	}
	if f.Off > hopeless {
		return "no order fits (x " + trim(f.Rise) + " in all)"
	}
	return f.Name + " (x " + trim(f.Rise) + " in all)"
}

// Find returns the simplest order that fits the points, which are in order of
// size; or, if none does, the one that comes closest by far. With fewer than three
// points there is none.
//
// A curve is a + b·f(n) with neither negative: what costs less as n grows counts as
// constant. Points weigh by their share, so that the small count as much as the
// great.
func Find(points []Point) Fit {
	if len(points) < 3 {
		return Fit{}
	}
	rise := points[len(points)-1].Cost / points[0].Cost
	var found Fit
	for _, o := range orders {
		fit := Fit{o, off(o, points), rise}
		switch {
		case found.Order.Name == "", fit.Off*better < found.Off && found.Off > fits:
			found = fit
		}
	}
	return found
}

// off fits a + b·f(n) by least squares of the relative error.
func off(o Order, points []Point) float64 {
	// In x = 1/cost and y = f(n)/cost, minimize the sum of (a·x + b·y − 1)².
	var xx, xy, yy, sx, sy float64
	for _, p := range points {
		x, y := 1/p.Cost, o.f(p.N)/p.Cost
		xx, xy, yy, sx, sy = xx+x*x, xy+x*y, yy+y*y, sx+x, sy+y
	}
	best := math.Inf(1)
	try := func(a, b float64) {
		if a < 0 || b < 0 || math.IsNaN(a) || math.IsNaN(b) {
			return
		}
		sum := 0.0
		for _, p := range points {
			e := (a+b*o.f(p.N))/p.Cost - 1
			sum += e * e
		}
		best = min(best, math.Sqrt(sum/float64(len(points))))
	}
	try(sx/xx, 0)
	if yy > 0 {
		try(0, sy/yy)
		// The tolerance is for f(n) that hardly differ from a constant.
		if det := xx*yy - xy*xy; det > 1e-12*xx*yy {
			try((sx*yy-sy*xy)/det, (sy*xx-sx*xy)/det)
		}
	}
	return best
}

// trim writes a number with two digits.
func trim(v float64) string {
	switch {
	case v >= 9.95:
		return group(int64(math.Round(v)))
	default:
		return strings.TrimSuffix(format1(v), ".0")
	}
}
