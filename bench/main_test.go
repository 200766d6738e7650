package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		args string
		err  string
		rows int // -1: any
	}{
		{"", "", -1},
		{"-quick -json out.json", "", -1},
		{"-run ^map/", "", 3},
		{"-run ^nothing$", "matches no row", 0},
		{"-run (", "-run", 0},
		{"-rounds 3", "at least 5", 0},
		{"stray", `unexpected argument "stray"`, 0},
		{"-bogus", "not defined", 0},
	} {
		cfg, err := parse(strings.Fields(tc.args), &bytes.Buffer{})
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: got %v, want an error with %q", tc.args, err, tc.err)
			}
		case err != nil:
			t.Errorf("%q: %v", tc.args, err)
		case cfg.rounds < minRounds || tc.rows >= 0 && len(cfg.rows) != tc.rows:
			t.Errorf("%q: %d rounds, %d rows, want %d", tc.args, cfg.rounds, len(cfg.rows), tc.rows)
		}
	}
	if _, err := parse([]string{"-h"}, &bytes.Buffer{}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v", err)
	}
}

// TestQuickRun measures a few rows of each kind: copies, several workers, a
// writer beside, rounds with a reset, and the kernel's.
func TestQuickRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.json")
	var stdout, stderr bytes.Buffer
	args := []string{"-quick", "-gvisor", "none", "-json", file,
		"-run", `^(copy/size=8/(handle|cores=2)|random/beside=(none|protect)|fault/first-touch|map/others=10|fork/touched=1MiB|cow/sparse)$`}
	if err := run(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var entries []report.Entry
	if err := json.Unmarshal(data, &entries); err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]bool)
	for _, e := range entries {
		rows[e.Row] = true
		if e.Ours == nil || *e.Ours <= 0 {
			t.Errorf("%s has no figure: %s", e.Row, e.Why)
		}
		if e.Against == report.GVisor && (e.Met || !strings.Contains(e.Why, "left out by -gvisor none")) {
			t.Errorf("%s: met %v, why %q, and the peer is missing", e.Row, e.Met, e.Why)
		}
		if e.Against == report.Kernel && e.Peers[report.Kernel] <= 0 {
			t.Errorf("%s: the kernel has no figure: %s", e.Row, e.Why)
		}
	}
	for _, want := range []string{"copy/size=8/cores=2", "random/beside=protect", "random/beside=protect/p99.9", "cow/sparse"} {
		if !rows[want] {
			t.Errorf("no row %s in %v", want, rows)
		}
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no row %s in\n%s", want, stdout.String())
		}
	}
}

func TestInterruptedRunPrintsWhatIsFinished(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if err := run(ctx, []string{"-quick", "-gvisor", "none", "-run", "^copy/"}, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stdout.String(), "interrupted: 0 of 6 rows") {
		t.Errorf("got\n%s", stdout.String())
	}
}
