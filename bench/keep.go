package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/guestmm/guestmm/bench/internal/chart"
	"github.com/guestmm/guestmm/bench/internal/host"
	"github.com/guestmm/guestmm/bench/internal/report"
)

// keptDir is <date>-<cpu> below root.
func keptDir(root string, now time.Time, cpu string) string {
	name := strings.Join(strings.FieldsFunc(strings.ToLower(cpu), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}), "-")
	if name == "" {
		name = "unknown"
	}
	return filepath.Join(root, now.UTC().Format(time.DateOnly)+"-"+name)
}

// keep writes everything into dir, if there is one:
//
//	table.txt    what was printed
//	rows.json    what -json writes
//	raw.txt      every round in the format of Go's benchmarks, for benchstat
//	rounds.json  every round with its histogram, and why who is missing
//	*.svg        plots: how costs grow, and distributions
func (m *measurement) keep(dir, header, footer string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	every := append(append(report.Results(nil), m.results...), m.points...)
	files := map[string]func(io.Writer) error{
		"table.txt": func(w io.Writer) error {
			fmt.Fprintf(w, "%s\n", header)
			return m.writeTable(w, footer)
		},
		"rows.json":   func(w io.Writer) error { return report.WriteJSON(w, report.OfGoals(m.entries)) },
		"raw.txt":     func(w io.Writer) error { return report.WriteRaw(w, host.CPU(), every) },
		"rounds.json": func(w io.Writer) error { return report.WriteRounds(w, every) },
	}
	var errs []error
	for name, write := range files {
		errs = append(errs, writeFile(filepath.Join(dir, name), write))
	}
	return errors.Join(append(errs, m.plots(dir))...)
}

func (m *measurement) plots(dir string) error {
	var errs []error
	for _, g := range m.grown {
		name := "growth-" + strings.ReplaceAll(g.Name, "/", "-") + ".svg"
		errs = append(errs, plotFile(filepath.Join(dir, name), func(w io.Writer) (bool, error) { return chart.Growth(w, g) }))
	}
	for _, r := range m.results {
		ds, err := distributions(r)
		errs = append(errs, err)
		if len(ds) == 0 {
			continue
		}
		name := "latency-" + strings.NewReplacer("/", "-", "=", "-").Replace(r.Row.Name) + ".svg"
		errs = append(errs, plotFile(filepath.Join(dir, name), func(w io.Writer) (bool, error) { return chart.Latency(w, r.Row.What, ds) }))
	}
	return errors.Join(errs...)
}

// distributions adds up the histograms of all rounds, for each contender that has
// any.
func distributions(r report.Result) (out []chart.Distribution, err error) {
	for _, name := range report.Contenders() {
		var sum *hdrhistogram.Histogram
		for _, fig := range r.Cells[name].Rounds {
			if len(fig.Latency) == 0 {
				continue
			}
			h, err := hdrhistogram.Decode(fig.Latency)
			if err != nil {
				return out, fmt.Errorf("%s, %s: %w", r.Row.Name, name, err)
			}
			if sum == nil {
				sum = h
			} else {
				sum.Merge(h)
			}
		}
		if sum != nil {
			out = append(out, chart.Distribution{Name: name, Hist: sum})
		}
	}
	return out, nil
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// plotFile leaves no file where there was nothing to draw.
func plotFile(path string, draw func(io.Writer) (bool, error)) error {
	drawn := false
	err := writeFile(path, func(w io.Writer) (err error) {
		drawn, err = draw(w)
		return err
	})
	if !drawn {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
