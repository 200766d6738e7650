package kvm

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// Descriptors and goroutines left over fail the run.
func TestMain(m *testing.M) { testutil.Main(m) }
