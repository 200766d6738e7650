package guest

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

func TestSubject(t *testing.T) {
	sub, err := New()
	if errors.Is(err, guestmem.ErrNotSupported) {
		t.Skipf("%v; to run it use Linux/amd64", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := workload.Verify(sub); err != nil {
		t.Error(err)
	}
	if err := sub.Close(); err != nil {
		t.Error(err)
	}
}
