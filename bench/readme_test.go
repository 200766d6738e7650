package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

const readme = "../README.md"

// TestReadmeQuotesTheLastKeptResult holds that the README's figures are those of the
// last kept result, and that there are none where nothing is kept.
func TestReadmeQuotesTheLastKeptResult(t *testing.T) {
	page, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, quoted, after, err := cutQuote(string(page))
	if err != nil {
		t.Fatal(err)
	}
	want, err := quoteOf("results", filepath.Dir(readme))
	if err != nil {
		t.Fatal(err)
	}
	if quoted != want {
		t.Errorf("README.md says what the last kept result does not; make bench-readme mends it. It says:\n%s\nand should:\n%s", quoted, want)
	}
	if loose := regexp.MustCompile(`[0-9] ?(ns|µs|ms)\b`).FindString(before + after); loose != "" {
		t.Errorf("README.md says %q outside what it quotes", loose)
	}
}

// keptAs writes a whole result whose figures are all v, and returns its parent.
func keptAs(t *testing.T, name string, v float64) string {
	t.Helper()
	var results report.Results
	for _, row := range workload.Rows() {
		cells := make(map[string]report.Cell)
		for _, name := range report.Contenders() {
			cells[name] = report.Cell{Rounds: []workload.Figure{{PerOp: v, P999: v, Ops: 1}}}
		}
		results = append(results, report.Result{Row: row, Cells: cells})
	}
	root := t.TempDir()
	m := measurement{results: results, entries: report.Entries(results, report.Goals())}
	if err := m.keep(filepath.Join(root, name), "cpu     Z80, 2 usable\nkernel  6.1\ndate    2026-01-02 03:04:05 UTC\n", ""); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestQuoteIn(t *testing.T) {
	root := keptAs(t, "2026-01-02-z80", 1234)
	if err := os.MkdirAll(filepath.Join(root, "2025-12-31-z80"), 0o755); err != nil { // not the last
		t.Fatal(err)
	}
	page := filepath.Join(root, "page.md")
	write := func(text string) {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + quoteBegins + "stale\n" + quoteEnds + "after\n")
	for range 2 { // the second changes nothing
		if err := run(t.Context(), []string{"-readme", page, "-keep", root}, &bytes.Buffer{}, &bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		before, quoted, after, err := cutQuote(string(text))
		if err != nil || before != "before\n" || after != "after\n" || strings.Contains(quoted, "stale") {
			t.Errorf("%v\n%s", err, text)
		}
		for _, want := range []string{"A fork takes 1.23 µs", "Z80, 2 usable; Linux 6.1; 2026-01-02", "](2026-01-02-z80/table.txt)", "- `copy/size=8/handle`: 1 x, the goal is <= 0.6 x gvisor"} {
			if !strings.Contains(quoted, want) {
				t.Errorf("no %q in\n%s", want, quoted)
			}
		}
	}
	write("no marks\n")
	if err := quoteIn(page, root); err == nil {
		t.Error("a page without marks was written to")
	}
	write(quoteBegins + quoteEnds)
	if err := quoteIn(page, filepath.Join(root, "nothing")); err == nil || !strings.Contains(err.Error(), "make bench-keep") {
		t.Errorf("no result: %v", err)
	}
	// A part of a run is not to be quoted.
	if err := os.WriteFile(filepath.Join(root, "2026-01-02-z80", "rows.json"), []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := quoteIn(page, root); err == nil || !strings.Contains(err.Error(), "no figure of fork/touched=1MiB") {
		t.Errorf("a part: %v", err)
	}
}
