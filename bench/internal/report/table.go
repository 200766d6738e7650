package report

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// WriteTable writes the entries as text, one line each, and below it what is
// missing and what was noisy, each said once.
func WriteTable(w io.Writer, entries []Entry) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "row\tguestmm\tspread\tgvisor\tkernel\tfloor\tfloor-spin\tratio\tgoal\tmet")
	for _, e := range entries {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			e.Row, e.ours(), e.spread(), e.peer(GVisor), e.peer(Kernel), e.peer(Floor), e.peer(FloorSpin), e.ratio(), e.goalText(), e.verdict())
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	var notes []string
	for _, e := range entries {
		if note := fmt.Sprintf("%s: %s", e.result.Row.Name, e.Why); e.Why != "" && !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	if len(notes) > 0 {
		fmt.Fprintln(w, "\nnotes (~ marks a row that noise makes doubtful):")
	}
	for _, note := range notes {
		fmt.Fprintln(w, "  "+note)
	}
	return nil
}

const none = "-"

func (e Entry) ours() string {
	if e.Ours == nil {
		return none
	}
	return formatNs(*e.Ours)
}

func (e Entry) spread() string {
	if e.Ours == nil {
		return none
	}
	return fmt.Sprintf("±%.0f%%", 100*e.Spread)
}

func (e Entry) peer(name string) string {
	if ns, ok := e.Peers[name]; ok {
		return formatNs(ns)
	}
	if e.result.Cells[name].Missing != "" {
		return "missing"
	}
	return none
}

// ratio leaves out the ratio to a goal in nanoseconds: the figure stands
// beside it.
func (e Entry) ratio() string {
	if e.Ratio == nil || e.goal != nil && e.goal.Of == "" && e.goal.OfRow == "" {
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

// formatNs writes a time with three digits and its unit.
func formatNs(ns float64) string {
	switch {
	case ns >= 1e6:
		return fmt.Sprintf("%.3g ms", ns/1e6)
	case ns >= 1e3:
		return fmt.Sprintf("%.3g µs", ns/1e3)
	default:
		return fmt.Sprintf("%.3g ns", ns)
	}
}
