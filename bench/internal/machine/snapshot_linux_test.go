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
	f, err := newFirst(size)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // each arms all, which pause checks
		if fig, err := f.pause(); err != nil || fig.PerOp <= 0 {
			t.Error(fig, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
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
