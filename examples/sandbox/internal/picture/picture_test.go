package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

func TestPictureParsesAndShowsEachRange(t *testing.T) {
	r := func(i, n addr.GVA, s guestmem.LayoutState, with ...uint32) guestmem.LayoutRange {
		return guestmem.LayoutRange{Range: addr.Range{Start: i << 12, End: (i + n) << 12}, Prot: guestmem.ProtRead, Name: `<a&"b">`, State: s, With: with}
	}
	all := guestmem.LaidPresent | guestmem.LaidShared | guestmem.LaidPinned | guestmem.LaidArmed | guestmem.LaidHuge
	f := guestmem.FamilyLayout{Spaces: []guestmem.SpaceLayout{
		{ID: 2, Ranges: []guestmem.LayoutRange{r(1, 1, 0), r(2, 1<<30, guestmem.LaidPresent), r(1<<31, 2, guestmem.LaidPresent|guestmem.LaidShared, 3)}, Areas: 3},
		{ID: 3, Snapshot: true, Ranges: []guestmem.LayoutRange{r(1, 1, all, 2)}},
		{ID: 4},
	}}
	for _, format := range []Format{SVG, HTML} {
		var b bytes.Buffer
		if err := Write(&b, format, `p & <q>`, f, guestmem.MemoryStats{FramesInUse: 7}); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		if format == HTML {
			start, end := strings.Index(text, "<svg"), strings.Index(text, "</svg>")
			if start < 0 || end < 0 || !strings.HasPrefix(text, "<!DOCTYPE html>") {
				t.Fatalf("no picture in %.200q", text)
			}
			text = text[start : end+6]
		}
		rects := map[string]int{}
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in %.300q", err, text)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
				for _, a := range e.Attr {
					if a.Name.Local == "fill" {
						rects[a.Value]++
					}
				}
			}
		}
		// One of each in the legend, and the ranges.
		for color, want := range map[string]int{emptyColor: 2, "#5b8fd9": 2, "#4fb37a": 2, "#c0392b": 2, "#e08e0b": 1} {
			if rects[color] != want {
				t.Errorf("%d boxes of %s, want %d", rects[color], color, want)
			}
		}
		for _, part := range []string{"snapshot 3", "address space 4", "7 frames in use", "with [3]", "shared, pinned, armed, 2 MiB"} {
			if !strings.Contains(text, part) {
				t.Errorf("the picture does not say %q", part)
			}
		}
	}
}
