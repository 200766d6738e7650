package report

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		median float64
		spread float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 0},
		{[]float64{3, 1}, 2, 0.5},
		{[]float64{9, 1, 5}, 5, 0.8},
		{[]float64{100, 10, 11, 9, 8}, 10, 0.1}, // quartiles 9 and 11
	} {
		if got := Median(tc.values); got != tc.median {
			t.Errorf("median of %v: got %v, want %v", tc.values, got, tc.median)
		}
		if got := Spread(tc.values); got != tc.spread {
			t.Errorf("spread of %v: got %v, want %v", tc.values, got, tc.spread)
		}
	}
}

// cell has rounds of these times.
func cell(ns ...float64) Cell {
	var c Cell
	for _, v := range ns {
		c.Rounds = append(c.Rounds, workload.Figure{PerOp: v, P999: 10 * v, Ops: 1})
	}
	return c
}

func result(row string, cells map[string]Cell) Result {
	return Result{Row: workload.Row{Name: row, What: "what", Cores: 1}, Cells: cells}
}

func TestEntries(t *testing.T) {
	rs := Results{
		result("a", map[string]Cell{Ours: cell(20, 19, 21), GVisor: cell(40), Kernel: {NotApplicable: true}}),
		result("two", map[string]Cell{Ours: cell(10), GVisor: {Missing: "it does not build"}}),
		result("bare", map[string]Cell{Ours: cell(20), Floor: cell(15)}),
		result("slow calls", map[string]Cell{Ours: cell(20), Floor: cell(25), Kernel: cell(21)}),
		result("wild peer", map[string]Cell{Ours: cell(20), GVisor: cell(40, 20, 60)}),
		result("zero", map[string]Cell{Ours: cell(1), GVisor: cell(0)}),
		result("wild", map[string]Cell{Ours: cell(20, 10, 30)}),
		result("broken", map[string]Cell{Ours: {Missing: "out of memory"}, GVisor: cell(1)}),
	}
	for _, tc := range []struct {
		name  string
		goal  Goal
		ratio float64 // -1: none
		met   bool
		why   string
	}{
		{"peer, met", Goal{Row: "a", Op: AtMost, Limit: 0.6, Of: GVisor}, 0.5, true, ""},
		{"peer, not met", Goal{Row: "a", Op: AtMost, Limit: 0.4, Of: GVisor}, 0.5, false, unexplained},
		{"peer without it", Goal{Row: "a", Op: AtMost, Limit: 1, Of: Kernel}, -1, false, "kernel has no such operation"},
		{"peer missing", Goal{Row: "two", Op: AtMost, Limit: 1, Of: GVisor}, -1, false, "gvisor is missing: it does not build"},
		{"peer not asked", Goal{Row: "two", Op: AtMost, Limit: 1, Of: Kernel}, -1, false, "kernel was not asked"},
		{"throughput", Goal{Row: "two", Op: AtLeast, Limit: 1.9, OfRows: []string{"a"}}, 2, true, ""},
		{"time of a row", Goal{Row: "a", Op: AtMost, Limit: 1.3, OfRows: []string{"two"}}, 2, false, unexplained},
		{"row not measured", Goal{Row: "a", Op: AtMost, Limit: 1.3, OfRows: []string{"three"}}, -1, false, "row three was not measured"},
		{"absolute", Goal{Row: "a", Op: AtMost, Limit: 20}, 20, true, ""},
		{"sum of rows", Goal{Row: "a", Op: AtMost, Limit: 1, OfRows: []string{"two", "wild"}}, 20.0 / 30, true, ""},
		{"sum with a row not measured", Goal{Row: "a", Op: AtMost, Limit: 1, OfRows: []string{"two", "three"}}, -1, false, "row three was not measured"},
		{"throughput of a peer", Goal{Row: "a", Op: AtLeast, Limit: 2.1, Of: GVisor}, 2, false, unexplained},
		{"missed, with its floor", Goal{Row: "a", Op: AtMost, Limit: 1, Floor: "two"}, 20, false, "two itself comes to 10 ns"},
		{"missed, beside bare calls", Goal{Row: "bare", Op: AtMost, Limit: 1, Why: "it waits"}, 20, false, "floor by itself comes to 15 ns; it waits"},
		{"missed, beside slower calls", Goal{Row: "slow calls", Op: AtMost, Limit: 1}, 20, false, unexplained},
		{"missed against them", Goal{Row: "bare", Op: AtMost, Limit: 1, Of: Floor, Why: "it waits"}, 20.0 / 15, false, "it waits"},
		{"met, so without it", Goal{Row: "bare", Op: AtMost, Limit: 2, Of: Floor, Why: "it waits"}, 20.0 / 15, true, ""},
		{"missed, with its parts", Goal{Row: "a", Op: AtMost, Limit: 0.5, OfRows: []string{"two", "bare"}}, 20.0 / 30, false, "of that, two 10 ns, bare 20 ns"},
		{"a peer's rounds apart", Goal{Row: "wild peer", Op: AtMost, Limit: 0.6, Of: GVisor}, 0.5, true, "the rounds of wild peer are ±50% apart for gvisor"},
		{"peer of nothing", Goal{Row: "zero", Op: AtMost, Limit: 1, Of: GVisor}, -1, false, "gvisor came to 0"},
		{"tail", Goal{Row: "a", Measure: Tail, Op: AtMost, Limit: 199}, 200, false, unexplained},
		{"rounds apart", Goal{Row: "wild", Op: AtMost, Limit: 20}, 20, true, "the rounds of wild are ±50% apart"},
		{"ours missing", Goal{Row: "broken", Op: AtMost, Limit: 1, Of: GVisor}, -1, false, "guestmm is missing: out of memory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []Entry
			for _, e := range Entries(rs, []Goal{tc.goal}) {
				if e.Goal != nil {
					got = append(got, e)
				}
			}
			if len(got) != 1 {
				t.Fatalf("%d entries for one goal", len(got))
			}
			ratio := -1.0
			if got[0].Ratio != nil {
				ratio = *got[0].Ratio
			}
			if ratio != tc.ratio || got[0].Met != tc.met || got[0].Why != tc.why {
				t.Errorf("ratio %v, met %v, why %q, want %v, %v, %q", ratio, got[0].Met, got[0].Why, tc.ratio, tc.met, tc.why)
			}
		})
	}
}

func TestGoalsNameRowsThatExist(t *testing.T) {
	for _, g := range Goals() {
		if _, err := workload.Find(g.Row); err != nil {
			t.Error(err)
		}
		for _, name := range append(g.OfRows, g.Floor) {
			if _, err := workload.Find(name); name != "" && err != nil {
				t.Error(err)
			}
		}
	}
}

// Every line of the list of goals is held against some row, in its order.
func TestGoalsCoverTheList(t *testing.T) {
	works := Works()
	if len(works) != 16 {
		t.Errorf("%d lines", len(works))
	}
	at := 0
	for _, g := range Goals() {
		switch i := slices.Index(works, g.Work); {
		case i < 0:
			t.Errorf("%s: no line %q", g.Row, g.Work)
		case i == at+1:
			at = i
		case i != at:
			t.Errorf("%s comes after %q", g.Row, works[at])
		}
	}
	if at != len(works)-1 {
		t.Errorf("nothing is held against %q", works[at+1])
	}
}

func TestTable(t *testing.T) {
	noisy := result("a", map[string]Cell{Ours: cell(2000, 1000, 3000), GVisor: cell(4e6), Kernel: {Missing: "no\nkernel"}})
	noisy.Noisy = "someone compiled"
	entries := Entries(Results{noisy}, []Goal{
		{Row: "a", Op: AtMost, Limit: 0.6, Of: GVisor},
		{Row: "a", Op: AtMost, Limit: 1500},
	})
	var out bytes.Buffer
	if err := WriteTable(&out, entries); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 µs", "±50%", "4 ms", "missing", "0.0005", "<= 0.60 x gvisor", "yes ~", "<= 1.5 µs", "no ~", "a: someone compiled"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "someone compiled"); n != 1 {
		t.Errorf("the note stands %d times", n)
	}
}

func TestJSON(t *testing.T) {
	entries := Entries(Results{
		result("a", map[string]Cell{Ours: cell(20), GVisor: cell(40)}),
		result("b", map[string]Cell{Ours: {Missing: "none"}}),
	}, []Goal{{Row: "a", Op: AtMost, Limit: 0.6, Of: GVisor}})
	var out bytes.Buffer
	if err := WriteJSON(&out, entries); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d objects for two rows", len(got))
	}
	for _, key := range []string{"row", "ours", "unit", "peers", "ratio", "op", "goal", "met", "noisy", "why"} {
		if _, ok := got[0][key]; !ok {
			t.Errorf("no key %q", key)
		}
	}
	if got[0]["met"] != true || got[0]["ratio"] != 0.5 || got[1]["ours"] != nil || got[1]["met"] != false {
		t.Errorf("got %v", got)
	}
	if !strings.Contains(out.String(), `"<="`) {
		t.Error("the comparison is escaped")
	}
}

func TestOfGoalsLeavesOutTheOthers(t *testing.T) {
	entries := Entries(Results{result("a", map[string]Cell{Ours: cell(20)}), result("b", map[string]Cell{Ours: cell(20)})},
		[]Goal{{Row: "a", Op: AtMost, Limit: 30}})
	if got := OfGoals(entries); len(entries) != 2 || len(got) != 1 || got[0].Row != "a" {
		t.Errorf("%d of %d", len(got), len(entries))
	}
	var out bytes.Buffer
	if err := WriteJSON(&out, nil); err != nil || strings.TrimSpace(out.String()) != "[]" {
		t.Errorf("of nothing: %q, %v", out.String(), err)
	}
}

// The lines are what benchstat takes: a name without spaces, a count, then pairs.
func TestRaw(t *testing.T) {
	rs := Results{
		result("copy/size=8/handle", map[string]Cell{Ours: cell(20, 21), GVisor: {Missing: "no"}, Kernel: {NotApplicable: true}}),
		result("heap/areas=30000", map[string]Cell{Ours: cell(90)}),
	}
	var out bytes.Buffer
	if err := WriteRaw(&out, "some cpu", rs); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"cpu: some cpu\n",
		"BenchmarkRow/copy/size=8/handle/by=guestmm\t1\t20 ns/op\t0 p50-ns\t200 p99.9-ns\n",
		"BenchmarkRow/copy/size=8/handle/by=guestmm\t1\t21 ns/op",
		"BenchmarkRow/heap/areas=30000/by=guestmm\t1\t90 B/area",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "Benchmark"); n != 3 {
		t.Errorf("%d lines for three rounds", n)
	}
}

func TestRoundsKeepWhyOneIsMissing(t *testing.T) {
	var out bytes.Buffer
	if err := WriteRounds(&out, Results{result("a", map[string]Cell{Ours: cell(20), GVisor: {Missing: "no network"}})}); err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Row        string
		Contenders map[string]Cell
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Contenders[GVisor].Missing != "no network" || len(got[0].Contenders[Ours].Rounds) != 1 {
		t.Errorf("got %+v", got)
	}
}
