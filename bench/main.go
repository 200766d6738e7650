package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"time"

	"github.com/guestmm/guestmm/bench/floor"
	"github.com/guestmm/guestmm/bench/internal/host"
	"github.com/guestmm/guestmm/bench/internal/machine"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// self is this binary, which is run again to have its system calls counted; empty
// in tests.
var self string

func main() {
	if isTraced, err := floor.Traced(os.Args[1:]); isTraced {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	self, _ = os.Executable()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends it at once
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
	series []workload.Series
	rounds int
	slow   int // rounds of slow rows
	count  int // rounds of rows that count or weigh
	budget time.Duration
	gvisor string // "build", "none", or the path of a built gvisorpeer
	json   string
	out    string // directory for everything; empty: none
	keep   bool   // out is for a whole run, or nothing
	list   bool
	// readme is the page that is to quote the last result below kept; empty: none.
	readme, kept string
	// verbose says after each row what took how long.
	verbose bool
}

// allRows are those of the report and of the series.
func (c config) allRows() []workload.Row {
	rows := slices.Clone(c.rows)
	for _, s := range c.series {
		for _, n := range s.Points {
			rows = append(rows, s.Row(n))
		}
	}
	return rows
}

// The quick run's rounds are as many as the full one's least, only shorter; but
// rounds that cannot be shortened are fewer.
const (
	minRounds   = 5
	fullSlow    = 6 // which benchstat needs for a confidence interval
	quickSlow   = 3
	quickCount  = 2
	fullBudget  = 50 * time.Millisecond
	quickBudget = 4 * time.Millisecond
)

func parse(args []string, stderr io.Writer) (config, error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	quick := fs.Bool("quick", false, "short rounds: under a minute, and more noise; growth is left out but for -run growth, which has fewer points")
	rounds := fs.Int("rounds", 7, "`rounds` per row, at least 5")
	pattern := fs.String("run", "", "only rows whose name, or whose question's name, matches the `regexp`")
	keep := fs.String("keep", "", "write everything below this `directory`, as <date>-<cpu>")
	var cfg config
	fs.StringVar(&cfg.gvisor, "gvisor", "build", "build, none, or the path of a built gvisorpeer")
	fs.StringVar(&cfg.json, "json", "", "write the rows that have a goal to this `file` too, - for standard output")
	fs.StringVar(&cfg.out, "out", "", "write everything into this `directory`: table, raw figures, plots")
	fs.StringVar(&cfg.readme, "readme", "", "measure nothing: have this `file` quote the last result below bench/results, or below -keep")
	fs.BoolVar(&cfg.list, "list", false, "list the questions and their rows, and measure nothing")
	fs.BoolVar(&cfg.verbose, "v", false, "say after each row how long each contender took over it")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	cfg.rounds, cfg.slow, cfg.count, cfg.budget = *rounds, fullSlow, fullSlow, fullBudget
	if *quick {
		cfg.rounds, cfg.slow, cfg.count, cfg.budget = minRounds, quickSlow, quickCount, quickBudget
	}
	if cfg.rounds < minRounds {
		return cfg, fmt.Errorf("-rounds %d: a median needs at least %d", cfg.rounds, minRounds)
	}
	cfg.kept = cmp.Or(*keep, "bench/results")
	if *keep != "" {
		switch {
		case cfg.out != "":
			return cfg, errors.New("-keep and -out: one of both")
		case cfg.readme == "" && (*quick || *pattern != ""):
			return cfg, errors.New("-keep: what is kept is a whole run, without -quick and -run")
		}
		cfg.keep = true
		cfg.out = keptDir(*keep, time.Now(), host.CPU())
	}
	match, err := regexp.Compile(*pattern)
	if err != nil {
		return cfg, fmt.Errorf("-run: %w", err)
	}
	for _, row := range workload.Rows() {
		if match.MatchString(row.Name) || match.MatchString(row.Question().Name) {
			cfg.rows = append(cfg.rows, row)
		}
	}
	for _, s := range workload.Growth() {
		// A quick run has them when it is asked for them.
		if match.MatchString("growth/"+s.Name) && (!*quick || *pattern != "") {
			if *quick {
				s.Points = few(s.Points)
			}
			cfg.series = append(cfg.series, s)
		}
	}
	if len(cfg.rows) == 0 && len(cfg.series) == 0 {
		return cfg, fmt.Errorf("-run %q matches no row", *pattern)
	}
	return cfg, nil
}

// few thins a series: the least size, two between, and none of which the making
// ready takes seconds.
func few(points []int) []int {
	n := len(points)
	return []int{points[0], points[n/3], points[n/2]}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	cfg, err := parse(args, stderr)
	if err != nil {
		return err
	}
	switch {
	case cfg.list:
		return list(stdout, cfg)
	case cfg.readme != "":
		return quoteIn(cfg.readme, cfg.kept)
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
	header := fmt.Sprintf("%s%-8s%s\n%-8s%d rounds of %v, medians\n", host.Describe(), "kvm", machine.Kind(), "rounds", cfg.rounds, cfg.budget)
	fmt.Fprintf(text, "%s\n", header)
	m := measurement{cfg: cfg, all: all, control: host.NewControl(), progress: stderr}
	m.rows(ctx)
	m.series(ctx)
	m.entries = report.Entries(m.results, report.Goals())
	footer := m.footer(ctx)
	if err := m.writeTable(text, footer); err != nil {
		return err
	}
	if cfg.keep && ctx.Err() != nil {
		cfg.out = "" // the README would quote it
		err = errors.New("interrupted: nothing is kept")
	}
	return errors.Join(err, writeJSON(cfg.json, stdout, report.OfGoals(m.entries)), m.keep(cfg.out, header, footer))
}

// list prints what there is to be measured.
func list(w io.Writer, cfg config) error {
	asked := ""
	for _, row := range cfg.rows {
		if q := row.Question(); q.Name != asked {
			asked = q.Name
			fmt.Fprintf(w, "%s: %s; not %s\n", q.Name, q.Asks, q.LeavesOut)
		}
		fmt.Fprintf(w, "  %-32s %s\n", row.Name, row.What)
	}
	for _, s := range cfg.series {
		fmt.Fprintf(w, "growth/%s: %s\n", s.Name, s.What)
	}
	return nil
}

func writeJSON(path string, stdout io.Writer, entries []report.Entry) error {
	switch path {
	case "":
		return nil
	case "-":
		return report.WriteJSON(stdout, entries)
	}
	return writeFile(path, func(w io.Writer) error { return report.WriteJSON(w, entries) })
}
