// Package picture draws what address spaces are made of and what they share, as
// SVG, alone or in an HTML page.
//
// Each address space is a band of areas in address order, holes between them left
// out. An area is as wide as the logarithm of its pages, so that one page can be
// seen beside a gigabyte; inside, ranges share its width the same way.
package picture

import (
	"fmt"
	"html/template"
	"io"
	"math"

	"github.com/guestmm/guestmm/guestmem"
)

// Format is what is written.
type Format int

// Formats.
const (
	SVG Format = iota
	HTML
)

const (
	width      = 1100.0
	left       = 10.0
	band       = 26.0
	row        = 62.0
	top        = 92.0
	maxDrawn   = 4096 // ranges of one address space
	pageShift  = 12
	emptyColor = "#e4e6ea"
)

// kinds are the colors, in the order of the legend; the first that fits is the one
// of a range.
var kinds = []struct {
	Name, Color string
	with        guestmem.LayoutState
}{
	{"pinned", "#c0392b", guestmem.LaidPinned},
	{"armed", "#e08e0b", guestmem.LaidArmed},
	{"shared, 2 MiB", "#1d7a46", guestmem.LaidShared | guestmem.LaidHuge},
	{"shared", "#4fb37a", guestmem.LaidShared},
	{"private, 2 MiB", "#1f4e9c", guestmem.LaidPresent | guestmem.LaidHuge},
	{"private", "#5b8fd9", guestmem.LaidPresent},
	{"absent", emptyColor, 0},
}

func colorOf(s guestmem.LayoutState) string {
	for _, k := range kinds {
		if s&k.with == k.with {
			return k.Color
		}
	}
	return emptyColor
}

type box struct {
	X, W         float64
	Color, Title string
}

type drawnSpace struct {
	Y              float64
	Title, Figures string
	Boxes          []box
}

type drawing struct {
	Title         string
	Width, Height float64
	Summary       string
	Kinds         any
	Spaces        []drawnSpace
	Band, Left    float64
}

// Write draws the family. Stats are those of the memory at the same moment.
func Write(w io.Writer, format Format, title string, f guestmem.FamilyLayout, stats guestmem.MemoryStats) error {
	d := drawing{Title: title, Width: width, Band: band, Left: left, Kinds: kinds}
	d.Summary = fmt.Sprintf("%d frames in use: %d of data, %d tables, %d of objects mapped nowhere, %d pinned away; %d free of %d",
		stats.FramesInUse, f.DataFrames, f.Tables, f.Unmapped, f.PinnedAway, stats.FramesFree, stats.FramesTotal)
	for i := range f.Spaces {
		d.Spaces = append(d.Spaces, draw(&f.Spaces[i], top+float64(i)*row))
	}
	d.Height = top + float64(len(f.Spaces))*row + 10
	if format == HTML {
		return page.Execute(w, d)
	}
	return page.ExecuteTemplate(w, "svg", d)
}

func draw(l *guestmem.SpaceLayout, y float64) drawnSpace {
	s := drawnSpace{Y: y, Title: fmt.Sprintf("address space %d", l.ID)}
	if l.Snapshot {
		s.Title = fmt.Sprintf("snapshot %d", l.ID)
	}
	private, shared := l.Bytes(guestmem.LaidPresent, guestmem.LaidShared), l.Bytes(guestmem.LaidShared, 0)
	s.Figures = fmt.Sprintf("%d areas, %s mapped: %s private, %s shared, %s absent; %s pinned, %s in 2 MiB pages, %s armed",
		l.Areas, size(l.Mapped), size(private), size(shared), size(l.Mapped-private-shared),
		size(l.Bytes(guestmem.LaidPinned, 0)), size(l.Bytes(guestmem.LaidHuge, 0)), size(l.Bytes(guestmem.LaidArmed, 0)))
	ranges := l.Ranges[:min(len(l.Ranges), maxDrawn)]
	total := 0.0
	for i := range ranges {
		total += weight(&ranges[i])
	}
	x := left
	for i := range ranges {
		r := &ranges[i]
		w := (width - 2*left) * weight(r) / total
		title := fmt.Sprintf("%v %v %s %s", r.Range, r.Prot, r.Name, words(r.State))
		if len(r.With) > 0 {
			title += fmt.Sprintf(" with %v", r.With)
		}
		s.Boxes = append(s.Boxes, box{x, w, colorOf(r.State), title})
		x += w
	}
	if n := len(l.Ranges) - len(ranges); n > 0 {
		s.Figures += fmt.Sprintf(" (%d ranges more are not drawn)", n)
	}
	return s
}

func weight(r *guestmem.LayoutRange) float64 { return 1 + math.Log2(float64(r.Len()>>pageShift)) }

func words(s guestmem.LayoutState) string {
	if s == 0 {
		return "absent"
	}
	out := "private"
	if s&guestmem.LaidShared != 0 {
		out = "shared"
	}
	for _, k := range []struct {
		bit  guestmem.LayoutState
		word string
	}{{guestmem.LaidPinned, ", pinned"}, {guestmem.LaidArmed, ", armed"}, {guestmem.LaidHuge, ", 2 MiB"}} {
		if s&k.bit != 0 {
			out += k.word
		}
	}
	return out
}

func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

var page = template.Must(template.New("html").Funcs(template.FuncMap{
	"legend": func(i int) float64 { return left + float64(i)*150 },
	"plus":   func(a, b float64) float64 { return a + b },
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Title}}</title></head>
<body style="margin:0;background:#fff">{{template "svg" .}}</body></html>
{{define "svg"}}<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{.Width}} {{.Height}}" width="{{.Width}}" height="{{.Height}}" font-family="sans-serif" font-size="12">
<rect x="0" y="0" width="{{.Width}}" height="{{.Height}}" fill="#ffffff"/>
<text x="{{.Left}}" y="22" font-size="16" font-weight="bold">{{.Title}}</text>
<text x="{{.Left}}" y="42" fill="#444444">{{.Summary}}</text>
{{range $i, $k := .Kinds}}<rect x="{{legend $i}}" y="54" width="14" height="14" fill="{{$k.Color}}"/><text x="{{plus (legend $i) 19}}" y="66">{{$k.Name}}</text>
{{end}}{{$band := .Band}}{{$left := .Left}}{{range .Spaces}}{{$y := .Y}}<text x="{{$left}}" y="{{plus $y 12}}"><tspan font-weight="bold">{{.Title}}</tspan> <tspan fill="#444444">{{.Figures}}</tspan></text>
{{range .Boxes}}<rect x="{{printf "%.2f" .X}}" y="{{plus $y 18}}" width="{{printf "%.2f" .W}}" height="{{$band}}" fill="{{.Color}}" stroke="#ffffff" stroke-width="0.5"><title>{{.Title}}</title></rect>
{{end}}{{end}}</svg>{{end}}`))
