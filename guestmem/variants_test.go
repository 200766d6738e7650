//go:build variants

package guestmem

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/variant"
)

// caughtWithin is how long the tests together have to notice a variant. Most take a
// second; processors that others need too may take far longer.
const caughtWithin = 4 * time.Minute

// judge is a run that has to notice what is wrong. None is made for one variant.
type judge struct {
	name string
	args []string
}

var (
	// judges: each variant has to be caught by one of them.
	judges = []judge{
		{"oracle", []string{"-test.run=^TestOracle$", "-oracle.ops=100000", "-oracle.shrink=0"}},
		{"torture", []string{"-test.run=^TestR1TortureOfFewPages$", "-torture.for=50s"}},
		{"staged races", []string{"-test.run=^TestR([0-9]+Remap|9)", "-test.failfast"}}, // what follows may hang
		{"huge leaves", []string{"-test.run=^TestR6HugeLeaf", "-rapid.checks=400", "-rapid.nofailfile"}},
	}
	// witnesses are heard with -variants.all, for the record.
	witnesses = []judge{
		{"machine", []string{"-test.run=^TestFamilyAgainstModel$", "-rapid.checks=400", "-rapid.nofailfile"}},
		{"histories", []string{"-test.run=^TestR1HistoriesHaveAnExplanation$", "-torture.for=8s"}},
	}
	hearAll = flag.Bool("variants.all", false, "hear all who may notice a variant, to their end, and not just the first")
)

// verdict is how a judge has ended.
type verdict struct {
	judge  string
	after  time.Duration
	green  bool // passed
	red    bool // failed; neither if it was ended from here
	output string
}

// hear runs this test binary again as a variant.
func (j judge) hear(ctx context.Context, name string) verdict {
	began := time.Now()
	cmd := exec.CommandContext(ctx, os.Args[0], j.args...)
	cmd.Env = append(os.Environ(), variant.Env+"="+name)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	// One that was ended from here has noticed nothing, and one that hangs has
	// not either: a test of its own has to say so.
	return verdict{j.name, time.Since(began), err == nil, err != nil && ctx.Err() == nil, string(out)}
}

// hearing returns the verdicts on a variant, in the order in which they came. After
// the first red one the others are ended, unless all are to be heard.
func hearing(name string, within time.Duration) (verdicts []verdict) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	all := judges
	if *hearAll {
		all = slices.Concat(judges, witnesses)
	}
	heard := make(chan verdict, len(all))
	for _, j := range all {
		go func() { heard <- j.hear(ctx, name) }()
	}
	for range all {
		v := <-heard
		verdicts = append(verdicts, v)
		if v.red && !*hearAll {
			cancel()
		}
	}
	return verdicts
}

// caughtBy returns the first of the judges that is red, witnesses aside.
func caughtBy(verdicts []verdict) (verdict, bool) {
	for _, v := range verdicts {
		if v.red && slices.ContainsFunc(judges, func(j judge) bool { return j.name == v.judge }) {
			return v, true
		}
	}
	return verdict{}, false
}

var symptom = regexp.MustCompile(`(?m)^(panic: .*|fatal error: .*|\s+\w+_test\.go:\d+: .*)$`)

// firstSymptom returns the line of a test's output that says what was wrong.
func firstSymptom(output string) string {
	line := strings.TrimSpace(symptom.FindString(output))
	return line[:min(len(line), 160)]
}

// Every variant of internal/variant is caught by one of the judges; and where nothing
// is broken, none complains.
func TestVariantsAreCaught(t *testing.T) {
	if chosen := variant.Chosen(); chosen != "" {
		t.Skipf("this run is %s", chosen)
	}
	t.Run("none", func(t *testing.T) {
		// There is no hurry in this one.
		for _, v := range hearing("", 10*time.Minute) {
			if !v.green {
				t.Errorf("nothing is broken, and the %s fails:\n%s", v.judge, v.output)
			}
		}
	})
	var table bytes.Buffer
	for _, b := range variant.Table {
		t.Run(b.Name, func(t *testing.T) {
			verdicts := hearing(b.Name, caughtWithin)
			if _, ok := caughtBy(verdicts); !ok {
				t.Errorf("nobody notices that %s", b.Break)
			}
			for _, v := range verdicts {
				if v.red {
					fmt.Fprintf(&table, "%-5s %-28s %-9s %5.1fs  %s\n", b.Rule, b.Name, v.judge, v.after.Seconds(), firstSymptom(v.output))
				}
			}
		})
	}
	t.Logf("caught by:\n%s", table.String())
}
