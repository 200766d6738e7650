package kernelmm

import (
	"errors"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

func TestRows(t *testing.T) {
	figures := 0
	for _, row := range workload.Rows() {
		run, err := Prepare(row)
		if errors.Is(err, workload.ErrNoFigure) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fig, err := run.Measure(time.Millisecond)
		if err != nil || fig.PerOp <= 0 {
			t.Errorf("%s: %+v, %v", row.Name, fig, err)
		}
		if err := run.Close(); err != nil {
			t.Errorf("%s: %v", row.Name, err)
		}
		figures++
	}
	if figures != len(rows) {
		t.Errorf("%d figures for %d rows: one is named after no row", figures, len(rows))
	}
}
