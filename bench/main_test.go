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
	"time"

	"github.com/guestmm/guestmm/bench/internal/growth"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
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
		{"-run ^beside-writer$", "", 5}, // by question
		{"-run ^growth/areas", "", 0},
		{"-out here -keep there", "one of both", 0},
		{"-quick -keep there", "a whole run", 0},
		{"-run ^map/ -keep there", "a whole run", 0},
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
	for args, want := range map[string]int{"": len(workload.Growth()), "-quick": 0, "-quick -run growth/readers": 1} {
		if cfg, err := parse(strings.Fields(args), &bytes.Buffer{}); err != nil || len(cfg.series) != want {
			t.Errorf("%q: %d series, %v, want %d", args, len(cfg.series), err, want)
		}
	}
	if _, err := parse([]string{"-h"}, &bytes.Buffer{}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v", err)
	}
}

// TestQuickRun measures a few rows of each kind: copies, several workers, a
// writer beside, rounds with a reset, and the kernel's.
func TestQuickRun(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "rows.json")
	var stdout, stderr bytes.Buffer
	args := []string{"-quick", "-gvisor", "none", "-json", file, "-out", filepath.Join(dir, "kept"),
		"-run", `^(copy/size=8/cores=2|random/beside=(none|protect)|map/others=10|cow/sparse)$|^growth/spaces/fork$`}
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
	for _, want := range []string{"growth/spaces/fork", "control ", "kvm ", "left out by -gvisor none"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, stdout.String())
		}
	}
	for name, want := range map[string]string{
		"table.txt": "random/beside=protect/p99.9", "rows.json": "random/beside=protect/p99.9", "rounds.json": "latency",
		"raw.txt":                           "BenchmarkRow/cow/sparse/by=kernel",
		"growth-spaces-fork.svg":            "<svg",
		"latency-random-beside-protect.svg": "<svg",
	} {
		if data, err := os.ReadFile(filepath.Join(dir, "kept", name)); err != nil || !strings.Contains(string(data), want) {
			t.Errorf("%s: %v, no %q in %d bytes", name, err, want, len(data))
		}
	}
}

func TestList(t *testing.T) {
	var stdout bytes.Buffer
	if err := run(t.Context(), []string{"-list"}, &stdout, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	for _, q := range workload.Questions() {
		if !strings.Contains(stdout.String(), q.Name+": "+q.Asks) {
			t.Errorf("no question %s", q.Name)
		}
	}
	for _, row := range workload.Rows() {
		if !strings.Contains(stdout.String(), row.Name) {
			t.Errorf("no row %s", row.Name)
		}
	}
}

func TestKeptDir(t *testing.T) {
	at := time.Date(2026, 3, 4, 23, 0, 0, 0, time.UTC)
	for cpu, want := range map[string]string{
		"AMD EPYC 7B13 (2.4 GHz)": "2026-03-04-amd-epyc-7b13-2-4-ghz",
		"":                        "2026-03-04-unknown",
	} {
		if got := keptDir("results", at, cpu); got != filepath.Join("results", want) {
			t.Errorf("%q: %s", cpu, got)
		}
	}
}

// A contender that is missing at a size is asked no more.
func TestAddPoints(t *testing.T) {
	all := []contender{{name: "a"}, {name: "b"}, {name: "c"}}
	fig := workload.Figure{PerOp: 5, Ops: 1}
	curves := make(map[string]*growth.Curve)
	left := addPoints(curves, all, report.Result{Cells: map[string]report.Cell{
		"a": {Rounds: []workload.Figure{fig}}, "b": {Missing: "out of areas"}, "c": {NotApplicable: true},
	}}, 10)
	if len(left) != 1 || left[0].name != "a" {
		t.Errorf("left: %v", left)
	}
	if len(curves["a"].Points) != 1 || curves["b"].Missing != "at 10: out of areas" || curves["c"] != nil {
		t.Errorf("curves: %+v", curves)
	}
}

// A part of a run would pass for the last result.
func TestInterruptedRunIsNotKept(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	err := run(ctx, []string{"-gvisor", "none", "-keep", dir}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "nothing is kept") {
		t.Errorf("got %v", err)
	}
	if last, err := lastKept(dir); last != "" || err != nil {
		t.Errorf("kept %q, %v", last, err)
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
