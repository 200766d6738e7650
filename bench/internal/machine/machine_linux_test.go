//go:build linux && amd64

package machine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// Every row is one of the report's and comes to a figure; the wide ones touch a
// gigabyte and are left to a run of the report.
func TestRows(t *testing.T) {
	testutil.RequireKVM(t)
	for name, prepare := range map[string]func(workload.Row) (*workload.Run, error){"ours": Prepare, "kernel": PrepareKernel} {
		figures := 0
		for _, row := range workload.Rows() {
			if row.Wide {
				continue
			}
			run, err := prepare(row)
			if errors.Is(err, workload.ErrNoFigure) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			fig, err := run.Measure(time.Millisecond)
			if err != nil || fig.PerOp <= 0 || fig.Ops == 0 {
				t.Errorf("%s, %s: %+v, %v", row.Name, name, fig, err)
			}
			if err := run.Close(); err != nil {
				t.Errorf("%s, %s: %v", row.Name, name, err)
			}
			figures++
		}
		if figures == 0 {
			t.Errorf("%s: no row", name)
		}
	}
	for _, rows := range []map[string]func(*workload.Run) error{ours, kernel} {
		for name := range rows {
			if _, err := workload.Find(name); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestKindNamesAnInvalidation(t *testing.T) {
	testutil.RequireKVM(t)
	if got := Kind(); got == "" || strings.HasPrefix(got, "none") {
		t.Errorf("got %q", got)
	}
}
