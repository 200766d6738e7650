//go:build amd64 || arm64

package floor

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// Every row has a figure of each who should have one.
func TestRows(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("needs a C compiler:", err)
	}
	p, err := Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, row := range workload.Rows() {
		if !Has(row) {
			if _, err := p.Blocking().Measure(row, 0); err != workload.ErrNoFigure {
				t.Errorf("%s: %v", row.Name, err)
			}
			continue
		}
		if row.Wide && testing.Short() {
			continue
		}
		rows++
		fig, err := p.Measure(row, time.Millisecond)
		if err != nil || fig.NsPerOp <= 0 || fig.Ops <= 0 {
			t.Errorf("%s, ours: %+v, %v", row.Name, fig, err)
		}
		c, err := p.Blocking().Measure(row, time.Millisecond)
		if err != nil || c.NsPerOp <= 0 || c.Ops != fig.Ops {
			t.Errorf("%s, in C: %+v, %v; ours has %d operations", row.Name, c, err, fig.Ops)
		}
		if s, err := p.Spinning().Measure(row, time.Millisecond); err != workload.ErrNoFigure && (err != nil || s.NsPerOp <= 0) {
			t.Errorf("%s, spinning: %+v, %v", row.Name, s, err)
		}
	}
	if rows == 0 {
		t.Error("no row")
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Setenv("CC", "no-such-compiler")
	if _, err := Build(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no C compiler") {
		t.Errorf("got %v", err)
	}
	t.Setenv("CC", "false")
	if _, err := Build(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "floor.c") {
		t.Errorf("got %v", err)
	}
	for _, out := range []string{"", "x", "1.5", "0 7\n", "5 0\n"} {
		if fig, err := parse(out); err == nil {
			t.Errorf("%q: %+v", out, fig)
		}
	}
}
