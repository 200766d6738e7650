package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// An Entry is one line of the report: a row under one goal, or under none.
type Entry struct {
	Row string `json:"row"`
	// Work is the line of the list of goals that this is part of; empty without a
	// goal.
	Work   Work               `json:"work"`
	What   string             `json:"what"`
	Ours   *float64           `json:"ours"` // null if not measured
	Unit   string             `json:"unit"`
	Spread float64            `json:"spread"`
	Peers  map[string]float64 `json:"peers"`
	// Ratio is what is compared with the goal: of ours to Against (for ">=", of
	// throughputs), or, for a goal in the row's own unit, ours itself.
	Ratio   *float64 `json:"ratio"`
	Against string   `json:"against"`
	Op      Op       `json:"op"`
	Goal    *float64 `json:"goal"` // null if none is set
	Met     bool     `json:"met"`
	Noisy   bool     `json:"noisy"`
	// Why says what forbids a verdict, or casts doubt on it; else empty.
	Why string `json:"why"`

	goal   *Goal
	result Result
	whys   []string // of Why
}

// Entries holds every row of rs against its goals. A row without a goal has
// one entry, with its ratio to gVisor where there is one.
func Entries(rs Results, goals []Goal) []Entry {
	var out []Entry
	for _, r := range rs {
		mine := slices.DeleteFunc(slices.Clone(goals), func(g Goal) bool { return g.Row != r.Row.Name })
		if len(mine) == 0 {
			out = append(out, plainEntry(r))
		}
		for _, g := range mine {
			out = append(out, goalEntry(rs, r, g))
		}
	}
	return out
}

func newEntry(r Result, m Measure) Entry {
	e := Entry{
		Row:    r.Row.Name,
		What:   r.Row.What,
		Unit:   r.Row.Unit(),
		Peers:  make(map[string]float64),
		Noisy:  r.Noisy != "",
		result: r,
	}
	if r.Noisy != "" {
		e.because(r.Noisy)
	}
	if m == Tail {
		e.Row += "/p99.9"
		e.Unit = "ns"
	}
	for name, cell := range r.Cells {
		switch {
		case !cell.has():
		case name == Ours:
			ours := Median(cell.values(m))
			e.Ours, e.Spread = &ours, Spread(cell.values(m))
		default:
			e.Peers[name] = Median(cell.values(m))
		}
	}
	switch {
	case e.Ours == nil:
		e.because(missing(r, Ours))
	case e.Spread > tooFarApart && !e.Noisy:
		e.Noisy = true
		e.because(fmt.Sprintf("the rounds of %s are ±%.0f%% apart", e.Row, 100*e.Spread))
	}
	return e
}

// because puts the reason for no verdict before what casts doubt on it.
func (e *Entry) because(why string) {
	e.whys = append([]string{why}, e.whys...)
	e.Why = strings.Join(e.whys, "; ")
}

// tooFarApart is the spread above which a median is not to be believed.
const tooFarApart = 0.25

func plainEntry(r Result) Entry {
	e := newEntry(r, Mean)
	if peer, ok := e.Peers[GVisor]; ok && e.Ours != nil && peer != 0 {
		ratio := *e.Ours / peer
		e.Ratio, e.Against = &ratio, GVisor
	}
	return e
}

func goalEntry(rs Results, r Result, g Goal) Entry {
	e := newEntry(r, g.Measure)
	e.goal, e.Work, e.Op, e.Goal = &g, g.Work, g.Op, &g.Limit
	if e.Ours == nil {
		return e
	}
	var base float64
	switch {
	case g.Of != "":
		e.Against = g.Of
		peer, ok := e.Peers[g.Of]
		if !ok {
			e.because(missing(r, g.Of))
			return e
		}
		base = peer
		if spread := Spread(r.Cells[g.Of].values(g.Measure)); spread > tooFarApart && !e.Noisy {
			e.Noisy = true
			e.because(fmt.Sprintf("the rounds of %s are ±%.0f%% apart for %s", e.Row, 100*spread, g.Of))
		}
	case len(g.OfRows) > 0:
		e.Against = Ours + " " + strings.Join(g.OfRows, " + ")
		for _, name := range g.OfRows {
			row, ok := rs.find(name)
			if !ok || !row.Cells[Ours].has() {
				e.because("row " + name + " was not measured")
				return e
			}
			base += Median(row.Cells[Ours].values(g.Measure))
			if row.Noisy != "" {
				e.Noisy = true
				e.because(name + ": " + row.Noisy)
			}
		}
	}
	ratio := *e.Ours
	switch {
	case base == 0 && e.Against != "":
		e.because(e.Against + " came to 0")
		return e
	case base != 0:
		ratio /= base
	}
	if e.Against != "" && g.Op == AtLeast {
		ratio = 1 / ratio
	}
	e.Ratio, e.Met = &ratio, g.Op.holds(ratio, g.Limit)
	if !e.Met {
		if reason := g.reason(rs, r, e.Unit); reason != "" {
			e.because(reason)
		} else if e.Why == "" {
			e.because(unexplained)
		}
	}
	return e
}

// unexplained stands where a goal is missed and neither noise nor a floor accounts for it.
const unexplained = "nothing is known that forbids it"

// reason is what forbids a goal that is missed: how much of it this run's own figures
// account for, and the goal's Why.
func (g Goal) reason(rs Results, r Result, unit string) string {
	var parts []string
	if floor, ok := rs.find(g.Floor); ok && floor.Cells[Ours].has() {
		parts = append(parts, fmt.Sprintf("%s itself comes to %s", g.Floor, format(Median(floor.Cells[Ours].values(g.Measure)), unit)))
	}
	if len(g.OfRows) > 1 {
		var own []string
		for _, name := range g.OfRows {
			row, _ := rs.find(name) // or there would be no ratio
			own = append(own, name+" "+format(Median(row.Cells[Ours].values(g.Measure)), unit))
		}
		parts = append(parts, "of that, "+strings.Join(own, ", "))
	}
	for _, name := range []string{Floor, Kernel} {
		cell := r.Cells[name]
		if name == g.Of || g.Measure != Mean || !cell.has() {
			continue
		}
		// Who is slower than we are does the same in another way, and is no part of ours.
		if theirs := Median(cell.values(Mean)); theirs <= Median(r.Cells[Ours].values(Mean)) {
			parts = append(parts, fmt.Sprintf("%s by itself comes to %s", name, format(theirs, unit)))
		}
	}
	if g.Why != "" {
		parts = append(parts, g.Why)
	}
	return strings.Join(parts, "; ")
}

func missing(r Result, name string) string {
	cell, ok := r.Cells[name]
	switch {
	case !ok:
		return name + " was not asked"
	case cell.NotApplicable:
		return name + " has no such operation"
	default:
		return name + " is missing: " + cell.Missing
	}
}

// OfGoals returns the entries that have a goal.
func OfGoals(entries []Entry) []Entry {
	return slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e.goal == nil })
}

// WriteJSON writes the entries as one array.
func WriteJSON(w io.Writer, entries []Entry) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if entries == nil {
		entries = []Entry{}
	}
	if err := enc.Encode(entries); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
