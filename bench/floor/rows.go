package floor

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// prefixes begin the names of the rows that ours are measured here for too.
var prefixes = []string{"uffd/", restorePrefix, callsPrefix, guestsPrefix}

const (
	guestsPrefix  = "growth/guests/fault="
	callsPrefix   = "count/calls="
	restorePrefix = "restore/"
)

// Has reports whether row is one of this package's.
func Has(row workload.Row) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(row.Name, prefix) {
			return true
		}
	}
	return false
}

// HasPeer reports whether the C program alone has a figure for a row of another's.
func HasPeer(row workload.Row) bool {
	_, ok := peerRows[row.Name]
	return ok
}

const (
	pageSize = 4096
	bulkRun  = 16 // pages in 64 KiB
	armSize  = 1 << 30
	// onePercent is how many pages of armSize are written between two snapshots.
	onePercent = armSize / pageSize / 100
	// guestPages is what each of many guests touches.
	guestPages = 64
)

// peerRows are what the program is run with for rows of others.
var peerRows = map[string][]string{
	"snapshot/pause=first":           {"arm", fmt.Sprint(armSize)},
	"snapshot/pause=again":           {"rearm", fmt.Sprint(armSize), "400", fmt.Sprint(onePercent / 400)},
	"snapshot/pause=again/scattered": {"rearm", fmt.Sprint(armSize), fmt.Sprint(onePercent), "1"},
	"fork/touched=1MiB":              {"fork", fmt.Sprint(1 << 20), "1"},
	"fork/touched=256MiB":            {"fork", fmt.Sprint(256 << 20), "1"},
	"fork/touched=1GiB":              {"fork", fmt.Sprint(1 << 30), "1"},
	"fork/areas=1":                   {"fork", "4096", "1"},
	"fork/areas=1000":                {"fork", fmt.Sprint(1000 * 4096), "1000"},
	"fork/areas=30000":               {"fork", fmt.Sprint(30000 * 4096), "30000"},
}

// mode is the row's name in the C program.
func mode(row workload.Row) string {
	if strings.HasPrefix(row.Name, restorePrefix) {
		return "missing-shmem"
	}
	return strings.TrimPrefix(row.Name, "uffd/")
}

// guests is how many guests a row of the series has; 0 of other rows.
func guests(row workload.Row) int {
	n, err := strconv.Atoi(strings.TrimPrefix(row.Name, guestsPrefix))
	if err != nil || !strings.HasPrefix(row.Name, guestsPrefix) {
		return 0
	}
	return n
}
