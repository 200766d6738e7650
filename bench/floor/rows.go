package floor

import (
	"strings"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// Prefix is what the names of all rows of this package begin with.
const Prefix = "uffd/"

// Has reports whether row is one of this package's.
func Has(row workload.Row) bool { return strings.HasPrefix(row.Name, Prefix) }

const (
	pageSize = 4096
	bulkRun  = 16 // pages in 64 KiB
	armSize  = 1 << 30
)

// mode is the row's name in the C program.
func mode(row workload.Row) string { return strings.TrimPrefix(row.Name, Prefix) }
