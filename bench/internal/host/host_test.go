package host

import (
	"strings"
	"testing"
)

func TestDescribe(t *testing.T) {
	got := Describe()
	for _, want := range []string{"cpu ", "kernel ", "thp ", "go ", "GOMAXPROCS"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestChosen(t *testing.T) {
	for line, want := range map[string]string{"always [madvise] never": "madvise", "": "", "0": ""} {
		if got := chosen(line); got != want {
			t.Errorf("chosen(%q): got %q, want %q", line, got, want)
		}
	}
}

func TestControl(t *testing.T) {
	c := NewControl()
	took := c.Run(2)
	if c.best.Spin <= 0 || c.best.Chase <= 0 || c.best.Spin > took.Spin || c.best.Chase > took.Chase {
		t.Fatalf("took %v, best %v", took, c.best)
	}
	if got := c.Summary(); !strings.Contains(got, "at best") || c.runs != 11 {
		t.Errorf("%q after %d runs", got, c.runs)
	}
	best := c.best
	fine := best
	slowCore := Times{2 * best.Spin, best.Chase}
	slowMemory := Times{best.Spin, 3 * best.Chase}
	for _, tc := range []struct {
		times         []Times
		cores, memory bool
	}{
		{nil, false, false},
		{[]Times{fine, fine, fine}, false, false},
		{[]Times{fine, slowCore, fine, fine}, false, false}, // the median stands
		{[]Times{slowCore, fine, fine}, true, false},
		{[]Times{fine, slowMemory, slowMemory}, false, true},
	} {
		if got := c.CoresDisturbed(tc.times); (got != "") != tc.cores {
			t.Errorf("%v: cores: got %q", tc.times, got)
		}
		if got := c.MemoryDisturbed(tc.times); (got != "") != tc.memory {
			t.Errorf("%v: memory: got %q", tc.times, got)
		}
	}
}
