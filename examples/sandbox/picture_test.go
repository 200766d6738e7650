//go:build linux && amd64

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// -map draws the program that ends and the one that it has left running.
func TestMapIsDrawn(t *testing.T) {
	for _, name := range []string{"map.svg", "map.html"} {
		file := filepath.Join(t.TempDir(), name)
		sandbox{flags: []string{"-map", file}}.run(t, testutil.Busybox(t), "sh", "-c", "sleep 1000 & echo done").want(t, 0, "done\n")
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		if i := strings.Index(text, "<svg"); i >= 0 {
			text = text[i : strings.Index(text, "</svg>")+6]
		}
		d, titles := xml.NewDecoder(strings.NewReader(text)), 0
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "title" {
				titles++
			}
		}
		if titles < 20 || strings.Count(text, "address space ") < 2 || !strings.Contains(text, "shared with") || !strings.Contains(text, "[stack]") {
			t.Errorf("%s shows %d ranges: %.600q", name, titles, text)
		}
	}
}

func TestMapRefusals(t *testing.T) {
	r := sandbox{}.start(t, []string{"-map", "x.png", "true"})
	if r.status != statusFailed {
		t.Errorf("status %d", r.status)
	}
	r.oneLine(t, ".svg or .html")
	testutil.RequireKVM(t)
	r = sandbox{}.start(t, []string{"-map", filepath.Join(t.TempDir(), "none", "x.svg"), testutil.Busybox(t), "true"})
	if r.status != statusFailed {
		t.Errorf("status %d", r.status)
	}
	r.oneLine(t, "no such file")
}
