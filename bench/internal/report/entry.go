package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// An Entry is one line of the report: a row under one goal, or under none.
type Entry struct {
	Row    string             `json:"row"`
	What   string             `json:"what"`
	Ours   *float64           `json:"ours"` // null if not measured
	Unit   string             `json:"unit"`
	Spread float64            `json:"spread"`
	Peers  map[string]float64 `json:"peers"`
	// Ratio is what is compared with the goal: of ours to Against, or, for a
	// goal in the row's own unit, ours itself.
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
		Unit:   "ns/op",
		Peers:  make(map[string]float64),
		Noisy:  r.Noisy != "",
		Why:    r.Noisy,
		result: r,
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
		e.Why = fmt.Sprintf("the rounds of %s are ±%.0f%% apart", e.Row, 100*e.Spread)
	}
	return e
}

// because puts the reason for no verdict before what casts doubt on it.
func (e *Entry) because(why string) {
	if e.Why != "" {
		why += "; " + e.Why
	}
	e.Why = why
}

// tooFarApart is the spread above which a median is not to be believed.
const tooFarApart = 0.25

func plainEntry(r Result) Entry {
	e := newEntry(r, Mean)
	if peer, ok := e.Peers[GVisor]; ok && e.Ours != nil {
		ratio := *e.Ours / peer
		e.Ratio, e.Against = &ratio, GVisor
	}
	return e
}

func goalEntry(rs Results, r Result, g Goal) Entry {
	e := newEntry(r, g.Measure)
	e.goal, e.Op, e.Goal = &g, g.Op, &g.Limit
	if e.Ours == nil {
		return e
	}
	var ratio float64
	switch {
	case g.Of != "":
		e.Against = g.Of
		peer, ok := e.Peers[g.Of]
		if !ok {
			e.because(missing(r, g.Of))
			return e
		}
		ratio = *e.Ours / peer
	case g.OfRow != "":
		e.Against = Ours + " " + g.OfRow
		base, ok := rs.find(g.OfRow)
		if !ok || !base.Cells[Ours].has() {
			e.because("row " + g.OfRow + " was not measured")
			return e
		}
		ratio = *e.Ours / Median(base.Cells[Ours].values(g.Measure))
		if g.Op == AtLeast {
			ratio = 1 / ratio
		}
	default:
		ratio = *e.Ours
	}
	e.Ratio, e.Met = &ratio, g.Op.holds(ratio, g.Limit)
	return e
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

// WriteJSON writes the entries as one array.
func WriteJSON(w io.Writer, entries []Entry) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(entries); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
