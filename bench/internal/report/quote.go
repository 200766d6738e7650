package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ReadJSON reads what WriteJSON has written.
func ReadJSON(r io.Reader) ([]Entry, error) {
	var entries []Entry
	if err := json.NewDecoder(r).Decode(&entries); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	return entries, nil
}

// quotedForks are told in a sentence, quotedRows as a table.
var (
	quotedForks = []string{"fork/touched=1MiB", "fork/touched=1GiB", "fork/areas=1", "fork/areas=30000"}
	quotedRows  = []string{
		"copy/size=8/handle", "random/areas=1000", "random/beside=map", "random/beside=map/p99.9", "fault/first-touch",
		"map/others=30000", "protect/others=30000", "fork/touched=256MiB", "cow/sparse", "uffd/missing", "uffd/bulk=64KiB",
		"snapshot/pause=first", "snapshot/pause=again", "clone/first-exit", "heap/areas=30000",
	}
)

// WriteQuote writes, as Markdown, what the README says of a whole run: forks in a
// sentence, some rows as a table, how many goals are met, and each that is not with its
// reason. host says what it was measured on, and table is the path of the whole.
//
// Entries are those that have a goal. A row that is not among them, or has no figure,
// is an error: a run that was interrupted, or only a part, is not to be quoted.
func WriteQuote(w io.Writer, host, table string, entries []Entry) error {
	q := quote{entries: entries}
	ours, theirs := make([]any, len(quotedForks)), make([]any, len(quotedForks))
	for i, row := range quotedForks {
		ours[i], theirs[i] = q.ours(row), q.theirs(row, GVisor)
	}
	fmt.Fprintf(&q.out, "**A fork takes %s with 1 MiB touched and %s with 1 GiB, %s with one area and %s with 30 000**,\n", ours...)
	fmt.Fprintf(&q.out, "where gVisor's memory manager takes %s, %s, %s and %s. Medians of interleaved rounds, no vCPU\n", theirs...)
	fmt.Fprintf(&q.out, "in the guest unless it is said: %s.\n\n", host)
	fmt.Fprint(&q.out, "| one operation | guestmm | peers | ratio | goal |\n|---|---|---|---|---|\n")
	for _, row := range quotedRows {
		q.line(row)
	}
	q.tally(table)
	if q.err != nil {
		return q.err
	}
	_, err := io.WriteString(w, q.out.String())
	return err
}

type quote struct {
	entries []Entry
	out     strings.Builder
	err     error // the first
}

func (q *quote) find(row string) Entry {
	i := slices.IndexFunc(q.entries, func(e Entry) bool { return e.Row == row })
	if i >= 0 && q.entries[i].Ours != nil {
		return q.entries[i]
	}
	if q.err == nil {
		q.err = fmt.Errorf("report: the result has no figure of %s", row)
	}
	return Entry{Ours: new(float64)}
}

func (q *quote) ours(row string) string {
	e := q.find(row)
	return format(*e.Ours, e.Unit)
}

func (q *quote) theirs(row, peer string) string {
	e := q.find(row)
	v, ok := e.Peers[peer]
	if !ok && q.err == nil {
		q.err = fmt.Errorf("report: the result has no figure of %s in %s", peer, row)
	}
	return format(v, e.Unit)
}

func (q *quote) line(row string) {
	e := q.find(row)
	var peers []string
	for _, name := range Contenders()[1:] {
		if v, ok := e.Peers[name]; ok && name != BTree && name != PageMap && name != FloorSpin {
			peers = append(peers, name+" "+format(v, e.Unit))
		}
	}
	what := e.What
	if strings.HasSuffix(e.Row, "/p99.9") {
		what += ": 99.9th percentile"
	}
	fmt.Fprintf(&q.out, "| %s | %s | %s | %s | %s |\n", what, q.ours(row), strings.Join(peers, ", "), e.ratio(), e.quotedGoal())
}

// quotedGoal reads "<= 0.6 x gvisor, met".
func (e Entry) quotedGoal() string {
	if e.Goal == nil {
		return none
	}
	text := fmt.Sprintf("%s %g x %s", e.Op, *e.Goal, e.Against)
	if e.Against == "" {
		text = fmt.Sprintf("%s %s", e.Op, format(*e.Goal, e.Unit))
	}
	if !e.Met {
		return text + ", not met"
	}
	return text + ", met"
}

func (q *quote) tally(table string) {
	var unmet []Entry
	for _, e := range q.entries {
		if !e.Met {
			unmet = append(unmet, e)
		}
	}
	fmt.Fprintf(&q.out, "\n%d of %d goals are met: the [whole table](%s) has all rows and peers.", len(q.entries)-len(unmet), len(q.entries), table)
	if len(unmet) > 0 {
		fmt.Fprint(&q.out, " Not met:\n\n")
	} else {
		fmt.Fprintln(&q.out)
	}
	for _, e := range unmet {
		fmt.Fprintf(&q.out, "- `%s`", e.Row)
		if e.Ratio != nil {
			fmt.Fprintf(&q.out, ": %s, the goal is %s", e.quotedRatio(), strings.TrimSuffix(e.quotedGoal(), ", not met"))
		}
		if e.Why != "" {
			fmt.Fprintf(&q.out, ". %s", oneLine(e.Why))
		}
		fmt.Fprintln(&q.out)
	}
}

func (e Entry) quotedRatio() string {
	if e.Against == "" {
		return format(*e.Ratio, e.Unit)
	}
	return fmt.Sprintf("%.3g x", *e.Ratio)
}
