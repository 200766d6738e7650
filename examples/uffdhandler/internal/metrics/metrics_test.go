package metrics

import (
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/guestmm/guestmm/uffd/pager"
)

type fake struct{ stats pager.Stats }

func (f *fake) Stats() *pager.Stats { return &f.stats }
func (f *fake) Missing() uint64     { return 7 }

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// Every counter has its own series, once, and what a guest has counted stays
// when it goes.
func TestSumsStay(t *testing.T) {
	m := New()
	a, b := &fake{}, &fake{}
	m.Add(a)
	m.Add(b)
	a.stats.Copied.Store(5)
	b.stats.Copied.Store(6)
	b.stats.Parked.Store(2)
	m.Observe(pager.OutcomeZeroed, time.Microsecond)
	m.Observe(pager.Outcome(99), time.Microsecond) // of a later version
	wants := func(lines ...string) {
		t.Helper()
		got := scrape(t, m)
		for _, l := range lines {
			if !strings.Contains(got, l+"\n") {
				t.Errorf("no line %q in\n%s", l, got)
			}
		}
	}
	wants(`uffdhandler_pages_total{outcome="copied"} 11`, "uffdhandler_guests 2", "uffdhandler_pages_missing 14",
		"uffdhandler_pages_parked 2", `uffdhandler_fault_seconds_count{outcome="zeroed"} 1`)
	m.Ended(b, "gone")
	m.Ended(b, "gone") // of a guest that is known no more only the end is counted
	a.stats.Copied.Inc()
	wants(`uffdhandler_pages_total{outcome="copied"} 12`, "uffdhandler_guests 1", "uffdhandler_pages_parked 0",
		`uffdhandler_guests_ended_total{outcome="gone"} 2`)
}

// Scraping, adding and ending go on at the same time.
func TestScrapeBesideGuests(t *testing.T) {
	m := New()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				g := &fake{}
				m.Add(g)
				g.stats.Missing.Inc()
				m.Observe(pager.OutcomeCopied, time.Millisecond)
				m.Ended(g, "gone")
			}
		})
	}
	for range 10 {
		scrape(t, m)
	}
	wg.Wait()
	if got := scrape(t, m); !strings.Contains(got, `uffdhandler_faults_total{kind="missing"} 200`+"\n") {
		t.Errorf("200 faults were counted:\n%s", got)
	}
}
