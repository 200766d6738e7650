package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"time"

	"github.com/guestmm/guestmm/bench/internal/host"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// config is what the command line asks for.
type config struct {
	rows   []workload.Row
	rounds int
	budget time.Duration
	gvisor string // "build", "none", or the path of a built gvisorpeer
	json   string
}

// The quick run's rounds are as many as the full one's least, only shorter.
const (
	minRounds   = 5
	fullBudget  = 50 * time.Millisecond
	quickBudget = 5 * time.Millisecond
)

func parse(args []string, stderr io.Writer) (config, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	quick := fs.Bool("quick", false, "short rounds: seconds in place of minutes, and more noise")
	rounds := fs.Int("rounds", 7, "`rounds` per row, at least 5")
	pattern := fs.String("run", "", "only rows that match the `regexp`")
	var cfg config
	fs.StringVar(&cfg.gvisor, "gvisor", "build", "build, none, or the path of a built gvisorpeer")
	fs.StringVar(&cfg.json, "json", "", "write the rows to this `file` too, - for standard output")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	cfg.rounds, cfg.budget = *rounds, fullBudget
	if *quick {
		cfg.rounds, cfg.budget = minRounds, quickBudget
	}
	if cfg.rounds < minRounds {
		return cfg, fmt.Errorf("-rounds %d: a median needs at least %d", cfg.rounds, minRounds)
	}
	match, err := regexp.Compile(*pattern)
	if err != nil {
		return cfg, fmt.Errorf("-run: %w", err)
	}
	for _, row := range workload.Rows() {
		if match.MatchString(row.Name) {
			cfg.rows = append(cfg.rows, row)
		}
	}
	if len(cfg.rows) == 0 {
		return cfg, fmt.Errorf("-run %q matches no row", *pattern)
	}
	return cfg, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	cfg, err := parse(args, stderr)
	if err != nil {
		return err
	}
	all, err := contenders(ctx, cfg, stderr)
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range all {
			if closeErr := c.Close(); closeErr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", c.name, closeErr))
			}
		}
	}()
	text := stdout
	if cfg.json == "-" {
		text = stderr
	}
	fmt.Fprintf(text, "%s%-8s%d rounds of %v, medians\n\n", host.Describe(), "rounds", cfg.rounds, cfg.budget)
	results := measure(ctx, cfg, all, stderr)
	entries := report.Entries(results, report.Goals())
	if err := report.WriteTable(text, entries); err != nil {
		return err
	}
	if ctx.Err() != nil {
		fmt.Fprintf(text, "\ninterrupted: %d of %d rows\n", len(results), len(cfg.rows))
	}
	return writeJSON(cfg.json, stdout, entries)
}

func writeJSON(path string, stdout io.Writer, entries []report.Entry) error {
	switch path {
	case "":
		return nil
	case "-":
		return report.WriteJSON(stdout, entries)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(report.WriteJSON(f, entries), f.Close())
}
