package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/guestmm/guestmm/bench/internal/growth"
)

// mustBeXML reads all of an SVG.
func mustBeXML(t *testing.T, svg []byte) {
	t.Helper()
	for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestGrowth(t *testing.T) {
	g := growth.Growth{Name: "areas/map", What: "a pair", Of: "areas", Curves: []growth.Curve{
		{Name: "ours", Points: []growth.Point{{N: 10, Cost: 850}, {N: 1000, Cost: 900}, {N: 1e6, Cost: 1100}}},
		{Name: "theirs", Points: []growth.Point{{N: 10, Cost: 1e3}, {N: 1000, Cost: 0}}}, // a 0 has no logarithm
		{Name: "nobody", Missing: "none"},
	}}
	var out bytes.Buffer
	if ok, err := Growth(&out, g); err != nil || !ok {
		t.Fatal(ok, err)
	}
	mustBeXML(t, out.Bytes())
	for _, want := range []string{"<svg", "ours, O(1)", "theirs", "areas", "1 µs"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out.String(), "nobody") {
		t.Error("who has no points is in the legend")
	}
}

func TestGrowthOfNothing(t *testing.T) {
	var out bytes.Buffer
	if ok, err := Growth(&out, growth.Growth{Curves: []growth.Curve{{Name: "nobody"}}}); ok || err != nil || out.Len() > 0 {
		t.Errorf("%v, %v, %d bytes", ok, err, out.Len())
	}
}

func TestLatency(t *testing.T) {
	h := hdrhistogram.New(1, 1e10, 3)
	for i := range int64(10_000) {
		h.RecordValue(30 + i%10)
	}
	h.RecordValue(200_000)
	one := hdrhistogram.New(1, 1e10, 3)
	one.RecordValue(50)
	var out bytes.Buffer
	ok, err := Latency(&out, "beside a writer", []Distribution{{"ours", h}, {"theirs", one}, {"nobody", hdrhistogram.New(1, 1e10, 3)}})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	mustBeXML(t, out.Bytes())
	for _, want := range []string{"beside a writer", "99.9 %", "100 µs", "ours", "theirs"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	points := tail(h)
	if last := points[len(points)-1]; last.X != 10_001 || last.Y < 199_000 {
		t.Errorf("the tail ends at %+v", last)
	}
}
