//go:build linux && amd64

package machine

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// The rows' own gigabyte is left to a run of the report.
func TestPausesOfASmallMemory(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	const size = 16 * mib
	if fig, err := pauseOnce(size); err != nil || fig.PerOp <= 0 {
		t.Fatal(fig, err)
	}
	a, err := newAgain(size, 10, 4)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if fig, err := a.pause(); err != nil || fig.PerOp <= 0 {
			t.Error(fig, err)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
