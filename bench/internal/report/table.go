package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/guestmm/guestmm/bench/internal/growth"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// WriteTable writes the entries as text, by question and one line each, with the
// contenders that the question has; below it what is missing and what was noisy,
// each said once, and how many goals are met.
func WriteTable(w io.Writer, entries []Entry) error {
	for _, q := range questionsOf(entries) {
		if q.Name != "" {
			fmt.Fprintf(w, "%s: %s; not %s\n", q.Name, q.Asks, q.LeavesOut)
		}
		mine := slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e.result.Row.Question().Name != q.Name })
		if err := writeSection(w, mine); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	writeNotes(w, entries)
	writeTally(w, entries)
	return nil
}

// questionsOf returns the questions that entries belong to, in order.
func questionsOf(entries []Entry) (out []workload.Question) {
	known := make(map[string]bool)
	for _, e := range entries {
		q := e.result.Row.Question()
		if !known[q.Name] {
			known[q.Name] = true
			out = append(out, q)
		}
	}
	slices.SortStableFunc(out, func(a, b workload.Question) int { return place(a) - place(b) })
	return out
}

func place(q workload.Question) int {
	return slices.IndexFunc(workload.Questions(), func(p workload.Question) bool { return p.Name == q.Name })
}

func writeSection(w io.Writer, entries []Entry) error {
	var peers []string
	for _, name := range Contenders()[1:] {
		if slices.ContainsFunc(entries, func(e Entry) bool { return e.peer(name) != none }) {
			peers = append(peers, name)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "  row\tguestmm\tspread\t%sratio\tgoal\tmet\n", columns(peers))
	for _, e := range entries {
		var figures []string
		for _, name := range peers {
			figures = append(figures, e.peer(name))
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s%s\t%s\t%s\n",
			e.Row, e.ours(), e.spread(), columns(figures), e.ratio(), e.goalText(), e.verdict())
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func columns(cells []string) string {
	if len(cells) == 0 {
		return ""
	}
	return strings.Join(cells, "\t") + "\t"
}

// writeNotes says each reason once, with the rows that it is about.
func writeNotes(w io.Writer, entries []Entry) {
	rows := make(map[string][]string)
	var whys []string
	add := func(why, row string) {
		if _, ok := rows[why]; !ok {
			whys = append(whys, why)
		}
		if !slices.Contains(rows[why], row) {
			rows[why] = append(rows[why], row)
		}
	}
	for _, e := range entries {
		name := e.result.Row.Name
		for _, why := range e.whys {
			add(why, name)
		}
		for _, peer := range Contenders()[1:] {
			if e.result.Cells[peer].Missing != "" {
				add(missing(e.result, peer), name)
			}
		}
	}
	if len(whys) > 0 {
		fmt.Fprintln(w, "notes (~ marks a row that noise makes doubtful):")
	}
	for _, why := range whys {
		fmt.Fprintf(w, "  %s: %s\n", strings.Join(rows[why], ", "), oneLine(why))
	}
}

// oneLine is for joined errors.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", ": ") }

func writeTally(w io.Writer, entries []Entry) {
	met, noisy, goals := 0, 0, OfGoals(entries)
	for _, e := range goals {
		if e.Met {
			met++
		}
		if e.Noisy {
			noisy++
		}
	}
	if len(goals) > 0 {
		fmt.Fprintf(w, "%d of %d goals are met; %d are doubtful\n", met, len(goals), noisy)
	}
}

const none = "-"

func (e Entry) ours() string {
	if e.Ours == nil {
		return none
	}
	return format(*e.Ours, e.Unit)
}

func (e Entry) spread() string {
	if e.Ours == nil {
		return none
	}
	return fmt.Sprintf("±%.0f%%", 100*e.Spread)
}

func (e Entry) peer(name string) string {
	if v, ok := e.Peers[name]; ok {
		return format(v, e.Unit)
	}
	if e.result.Cells[name].Missing != "" {
		return "missing"
	}
	return none
}

// ratio leaves out the ratio to a goal in the row's own unit: the figure stands
// beside it.
func (e Entry) ratio() string {
	if e.Ratio == nil || e.Against == "" {
		return none
	}
	return fmt.Sprintf("%.3g", *e.Ratio)
}

func (e Entry) goalText() string {
	if e.goal == nil {
		return none
	}
	return e.goal.String()
}

func (e Entry) verdict() string {
	mark := ""
	if e.Noisy {
		mark = " ~"
	}
	switch {
	case e.goal == nil:
		return none + mark
	case e.Met:
		return "yes" + mark
	default:
		return "no" + mark
	}
}

// format writes a figure with three digits and its unit.
func format(v float64, unit string) string {
	if unit != "ns/op" && unit != "ns" {
		unit, _, _ = strings.Cut(unit, "/")
		return fmt.Sprintf("%.3g %s", v, unit)
	}
	return growth.Duration(v)
}
