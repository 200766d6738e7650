package workload

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

func TestEveryRowRunsAndCloses(t *testing.T) {
	seen := make(map[string]bool)
	for _, row := range Rows() {
		t.Run(row.Name, func(t *testing.T) {
			if seen[row.Name] {
				t.Error("the name is used twice")
			}
			seen[row.Name] = true
			if row.What == "" || row.Cores < 1 || row.Question().Name == "" {
				t.Errorf("what %q, cores %d, question %q", row.What, row.Cores, row.Question().Name)
			}
			sub := &fake{}
			run, err := row.Prepare(sub)
			if !row.OfSubject() {
				if !errors.Is(err, ErrNoFigure) {
					t.Errorf("of a Subject: %v, want ErrNoFigure", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			fig, err := run.Measure(time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			// A fake has nothing to be weighed or counted.
			if fig.Ops == 0 || fig.PerOp <= 0 && row.Unit() == "ns/op" {
				t.Errorf("figure %+v is empty", fig)
			}
			if run.Sampled && (fig.P50 <= 0 || fig.P999 < fig.P50) {
				t.Errorf("figure %+v: percentiles are out of order", fig)
			}
			if err := run.Close(); err != nil {
				t.Error(err)
			}
			if n := sub.open.Load(); n != 0 {
				t.Errorf("%d spaces and copiers are left open", n)
			}
		})
	}
}

// The least point of every series; the report's tests have the others' names.
func TestEverySeriesRuns(t *testing.T) {
	for _, s := range Growth() {
		if s.What == "" || s.Of == "" || len(s.Points) < 5 || !slices.IsSorted(s.Points) {
			t.Errorf("series %+v", s)
		}
		row, err := Find(s.Row(s.Points[0]).Name)
		if err != nil {
			t.Fatal(err)
		}
		sub := &fake{}
		run, err := row.Prepare(sub)
		if errors.Is(err, ErrNoFigure) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if fig, err := run.Measure(time.Millisecond); err != nil || fig.Ops == 0 || fig.PerOp <= 0 {
			t.Errorf("%s: %+v, %v", row.Name, fig, err)
		}
		if err := run.Close(); err != nil || sub.open.Load() != 0 {
			t.Errorf("%s: %v, %d spaces and copiers are left open", row.Name, err, sub.open.Load())
		}
	}
}

// Every question has rows, and its name finds them.
func TestEveryQuestionHasRows(t *testing.T) {
	rows := make(map[string]int)
	for _, row := range Rows() {
		rows[row.Question().Name]++
	}
	for _, q := range Questions() {
		if rows[q.Name] == 0 || q.Asks == "" || q.LeavesOut == "" {
			t.Errorf("question %q: %d rows, asks %q, leaves out %q", q.Name, rows[q.Name], q.Asks, q.LeavesOut)
		}
	}
}

// The clock is one of the test's own, so that nothing takes longer than it says.
func TestMeasureKeepsResetsOffTheClock(t *testing.T) {
	synctest.Test(t, keepResetsOffTheClock)
}

func keepResetsOffTheClock(t *testing.T) {
	calls, resets, since := 0, 0, 0
	run := &Run{
		PerCall: 2,
		Round:   3,
		Reset: func() error {
			resets++
			since = 0
			time.Sleep(2 * time.Millisecond)
			return nil
		},
		Workers: []Op{func(i int) error {
			if i != since {
				t.Fatalf("call %d of its round came as i = %d", since, i)
			}
			since++
			calls++
			time.Sleep(100 * time.Microsecond)
			return nil
		}},
	}
	fig, err := run.measure(3*time.Millisecond, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if fig.Ops != 2*calls {
		t.Errorf("%d operations in %d calls of 2", fig.Ops, calls)
	}
	if calls < 30 || resets < calls/3 {
		t.Errorf("%d resets for %d calls, 3 to a round", resets, calls)
	}
	if want := float64(50 * time.Microsecond); fig.PerOp != want {
		t.Errorf("%v ns an operation, want %v: the resets are on the clock", fig.PerOp, want)
	}
}

func TestMeasureReturnsErrors(t *testing.T) {
	broken := errors.New("broken")
	fail := func() error { return broken }
	failing := func(int) error { return broken }
	fine := func(int) error { return nil }
	for name, run := range map[string]*Run{
		"reset":    {PerCall: 1, Round: 1, Reset: fail, Workers: []Op{fine}},
		"call":     {PerCall: 1, Workers: []Op{failing}},
		"sampled":  {PerCall: 1, Sampled: true, Workers: []Op{failing}},
		"together": {PerCall: 1, Workers: []Op{fine, failing}},
		"writer":   {PerCall: 1, Writer: fail, Workers: []Op{fine}},
	} {
		if _, err := run.Measure(time.Millisecond); !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want the error", name, err)
		}
	}
}

func TestSampledRunHasItsDistribution(t *testing.T) {
	run := &Run{PerCall: 1, Sampled: true, Workers: []Op{func(i int) error {
		if i%320 == sampleEvery-1 {
			time.Sleep(time.Millisecond) // one sample of ten
		}
		return nil
	}}}
	fig, err := run.Measure(20 * time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	hist, err := hdrhistogram.Decode(fig.Latency)
	if err != nil {
		t.Fatal(err)
	}
	if hist.TotalCount() != int64(fig.Ops/sampleEvery) {
		t.Errorf("%d samples of %d calls", hist.TotalCount(), fig.Ops)
	}
	if fig.P999 < 1e6 || float64(hist.ValueAtQuantile(99.9)) != fig.P999 || float64(hist.ValueAtQuantile(50)) != fig.P50 {
		t.Errorf("%v and %v; the histogram has %d and %d", fig.P50, fig.P999, hist.ValueAtQuantile(50), hist.ValueAtQuantile(99.9))
	}
}

func TestCountedRunIsNotTimed(t *testing.T) {
	want := Figure{PerOp: 8, Ops: 3}
	run := &Run{Count: func() (Figure, error) { return want, nil }}
	if got, err := run.Measure(time.Hour); err != nil || got.PerOp != want.PerOp || got.Ops != want.Ops {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestServe(t *testing.T) {
	sub := &fake{}
	requests := `{"row":"map/others=10","budget_ns":1000000}
{"row":"map/others=10","budget_ns":1000000}
{"row":"no such row","budget_ns":1}
{"row":""}
{"row":"copy/size=8/cores=2","budget_ns":1000000}
`
	var out strings.Builder
	if err := Serve(strings.NewReader(requests), &out, sub); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(out.String()))
	for i, want := range []struct {
		row    string
		err    bool
		figure bool
	}{
		{"map/others=10", false, true},
		{"map/others=10", false, true},
		{"no such row", true, false},
		{"", false, false},
		{"copy/size=8/cores=2", false, true},
	} {
		var got Reply
		if err := dec.Decode(&got); err != nil {
			t.Fatalf("reply %d: %v", i, err)
		}
		if got.Row != want.row || (got.Err != "") != want.err || (got.Figure.Ops > 0) != want.figure {
			t.Errorf("reply %d: %+v, want %+v", i, got, want)
		}
	}
	if dec.More() {
		t.Error("more replies than requests")
	}
	if n := sub.open.Load(); n != 0 {
		t.Errorf("%d spaces and copiers are left open", n)
	}
}

func TestServeRefusesWhatIsNoRequest(t *testing.T) {
	if err := Serve(strings.NewReader("copy8\n"), io.Discard, &fake{}); err == nil {
		t.Error("a line that is not JSON was taken")
	}
}

func TestVerifyRefusesWhatDoesNotWork(t *testing.T) {
	sub := &fake{}
	if err := Verify(sub); err == nil {
		t.Error("a subject that remembers nothing passed")
	}
	if n := sub.open.Load(); n != 0 {
		t.Errorf("%d spaces and copiers are left open", n)
	}
}
