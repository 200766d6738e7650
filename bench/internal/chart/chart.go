package chart

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"github.com/HdrHistogram/hdrhistogram-go"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/guestmm/guestmm/bench/internal/growth"
)

const width, height = 18 * vg.Centimeter, 11 * vg.Centimeter

// colors are told apart by those who do not see all of them (Okabe and Ito).
var colors = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, // blue
	color.RGBA{0xd5, 0x5e, 0x00, 0xff}, // vermillion
	color.RGBA{0x00, 0x9e, 0x73, 0xff}, // green
	color.RGBA{0xe6, 0x9f, 0x00, 0xff}, // orange
	color.RGBA{0xcc, 0x79, 0xa7, 0xff}, // purple
	color.RGBA{0x56, 0xb4, 0xe9, 0xff}, // sky
	color.RGBA{0x00, 0x00, 0x00, 0xff},
}

// Growth draws a series with both axes logarithmic. It reports false, and draws
// nothing, if there is no point.
func Growth(w io.Writer, g growth.Growth) (bool, error) {
	p := newPlot(g.What, g.Of, "time per operation")
	p.X.Tick.Marker = plot.LogTicks{Prec: -1}
	var drawn int
	for i, c := range g.Curves {
		var points plotter.XYs
		for _, pt := range c.Points {
			if pt.N > 0 && pt.Cost > 0 {
				points = append(points, plotter.XY{X: pt.N, Y: pt.Cost})
			}
		}
		if len(points) == 0 {
			continue
		}
		drawn++
		if err := add(p, i, c.Name+", "+growth.Find(c.Points).String(), points, draw.CircleGlyph{}); err != nil {
			return false, err
		}
	}
	return drawn > 0, write(w, p, drawn)
}

// A Distribution is one contender's latencies.
type Distribution struct {
	Name string
	Hist *hdrhistogram.Histogram // in nanoseconds
}

// Latency draws distributions by percentile: 90, 99, 99.9 and so on are the same
// distance apart, so that the tail has as much room as the rest. It reports false,
// and draws nothing, if there is no sample.
func Latency(w io.Writer, title string, ds []Distribution) (bool, error) {
	p := newPlot(title, "percentile", "latency")
	p.X.Tick.Marker = percentiles{}
	var drawn int
	for i, d := range ds {
		points := tail(d.Hist)
		if len(points) == 0 {
			continue
		}
		drawn++
		if err := add(p, i, d.Name, points, nil); err != nil {
			return false, err
		}
	}
	return drawn > 0, write(w, p, drawn)
}

// tail returns the quantiles of a histogram: x is one over the share above.
func tail(h *hdrhistogram.Histogram) (points plotter.XYs) {
	n := h.TotalCount()
	for _, b := range h.CumulativeDistributionWithTicks(5) {
		above := 1 - b.Quantile/100
		if above*float64(n) < 1 || b.ValueAt <= 0 { // the last sample alone
			continue
		}
		points = append(points, plotter.XY{X: 1 / above, Y: float64(b.ValueAt)})
	}
	if max := h.Max(); n > 0 && max > 0 {
		points = append(points, plotter.XY{X: float64(n), Y: float64(max)})
	}
	return points
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = durations{}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	return p
}

func add(p *plot.Plot, i int, name string, points plotter.XYs, glyph draw.GlyphDrawer) error {
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return fmt.Errorf("chart: %s: %w", name, err)
	}
	line.Color, dots.Color = colors[i%len(colors)], colors[i%len(colors)]
	line.Width = vg.Points(1.5)
	p.Add(line)
	p.Legend.Add(name, line)
	if glyph != nil {
		dots.Shape = glyph
		p.Add(dots)
	}
	return nil
}

func write(w io.Writer, p *plot.Plot, drawn int) error {
	if drawn == 0 {
		return nil
	}
	// A logarithmic axis cannot begin at 0, nor be of no length.
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		if axis.Max <= axis.Min {
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	// Room for the legend.
	p.Y.Max *= math.Pow(p.Y.Max/p.Y.Min, 0.35)
	svg, err := p.WriterTo(width, height, "svg")
	if err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	if _, err := svg.WriteTo(w); err != nil {
		return fmt.Errorf("chart: %w", err)
	}
	return nil
}

// durations ticks each power of ten of nanoseconds.
type durations struct{}

func (durations) Ticks(low, high float64) (ticks []plot.Tick) {
	for v := math.Pow(10, math.Floor(math.Log10(low))); v <= high*1.001; v *= 10 {
		ticks = append(ticks, plot.Tick{Value: v, Label: growth.Duration(v)})
		for k := 2.0; k < 10; k++ {
			ticks = append(ticks, plot.Tick{Value: k * v})
		}
	}
	return ticks
}

// percentiles ticks 0, 90, 99, 99.9 and so on.
type percentiles struct{}

func (percentiles) Ticks(low, high float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 1, Label: "0 %"}}
	for v, label := 10.0, "90"; v <= high*1.001; v *= 10 {
		ticks = append(ticks, plot.Tick{Value: v, Label: label + " %"})
		switch label {
		case "90":
			label = "99"
		case "99":
			label = "99.9"
		default:
			label += "9"
		}
	}
	return ticks
}
