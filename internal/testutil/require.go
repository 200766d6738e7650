package testutil

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// requireEnv names the variable that lists what may not be skipped.
const requireEnv = "GUESTMM_REQUIRE"

// A need is something of the host that a test may ask for. Its value is the
// word that GUESTMM_REQUIRE uses.
type need string

const (
	needKVM     need = "kvm"
	needUFFD    need = "uffd"
	needBusybox need = "busybox"

	needHugePages need = "hugepages"
)

var needs = []need{needKVM, needUFFD, needBusybox, needHugePages}

// parseRequired splits the value of GUESTMM_REQUIRE. An unknown word is an
// error: a misspelt one would require nothing and hide that it does.
func parseRequired(list string) ([]need, error) {
	var out []need
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			continue
		}
		if !slices.Contains(needs, need(word)) {
			return nil, fmt.Errorf("%s names %q, which is none of %v", requireEnv, word, needs)
		}
		out = append(out, need(word))
	}
	return out, nil
}

// A lack says why a need is not met on this host.
type lack struct {
	reason string
	cure   string
	// plain marks a host that should have what it has not: the test fails.
	plain bool
}

func (l *lack) String() string { return l.reason + "; to cure it: " + l.cure }

// require skips or fails t if l is not nil.
func require(t testing.TB, n need, l *lack) {
	t.Helper()
	required, err := parseRequired(os.Getenv(requireEnv))
	switch {
	case err != nil:
		t.Fatal(err)
	case l == nil:
	case slices.Contains(required, n):
		t.Fatalf("%s is required by %s: %v", n, requireEnv, l)
	case l.plain:
		t.Fatalf("%s should be available on this host: %v", n, l)
	default:
		t.Skipf("needs %s: %v", n, l)
	}
}
