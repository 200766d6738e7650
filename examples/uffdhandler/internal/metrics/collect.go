package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/guestmm/guestmm/uffd/pager"
)

// A counter is one series, with at most one label, out of the pager's.
type counter struct {
	desc  *prometheus.Desc
	label string
	value func(*pager.Stats) uint64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	faults  = describe("faults_total", "Faults read, by kind; joined ones were for a page already on its way.", "kind")
	pages   = describe("pages_total", "Pages, by what became of them.", "outcome")
	events  = describe("events_total", "Changes of layout, by kind; stray ones were of memory that is not served.", "kind")
	ahead   = describe("pages_ahead_total", "Of the pages copied: those that came before they were asked for.")
	reads   = describe("source_reads_total", "Reads of the memory file, each attempt counted.")
	errs    = describe("source_errors_total", "Of those reads: the ones that failed.")
	retries = describe("installs_retried_total", "Installs that met a change of layout and were tried again.")

	guests  = describe("guests", "Guests that are being served.")
	missing = describe("pages_missing", "Pages of those guests that have not come yet.")
	parked  = describe("pages_parked", "Pages that cannot be read, and are waited for.")
)

var series = []counter{
	{faults, "missing", func(s *pager.Stats) uint64 { return s.Missing.Load() }},
	{faults, "minor", func(s *pager.Stats) uint64 { return s.Minor.Load() }},
	{faults, "write_protect", func(s *pager.Stats) uint64 { return s.Written.Load() }},
	{faults, "joined", func(s *pager.Stats) uint64 { return s.Joined.Load() }},
	{faults, "outside", func(s *pager.Stats) uint64 { return s.Outside.Load() }},

	{pages, "copied", func(s *pager.Stats) uint64 { return s.Copied.Load() }},
	{pages, "zeroed", func(s *pager.Stats) uint64 { return s.Zeroed.Load() }},
	{pages, "already", func(s *pager.Stats) uint64 { return s.Already.Load() }},
	{pages, "removed", func(s *pager.Stats) uint64 { return s.Removed.Load() }},
	{pages, "gone", func(s *pager.Stats) uint64 { return s.Gone.Load() }},
	{pages, "failed", func(s *pager.Stats) uint64 { return s.Failed.Load() }},

	{events, "remove", func(s *pager.Stats) uint64 { return s.Removes.Load() }},
	{events, "remap", func(s *pager.Stats) uint64 { return s.Remaps.Load() }},
	{events, "unmap", func(s *pager.Stats) uint64 { return s.Unmaps.Load() }},
	{events, "fork", func(s *pager.Stats) uint64 { return s.Forks.Load() }},
	{events, "stray", func(s *pager.Stats) uint64 { return s.Strays.Load() }},

	// Parts of a whole are series of their own: a difference of two counters
	// that are read one after the other could fall.
	{ahead, "", func(s *pager.Stats) uint64 { return s.Prefetch.Load() }},
	{reads, "", func(s *pager.Stats) uint64 { return s.Reads.Load() }},
	{errs, "", func(s *pager.Stats) uint64 { return s.ReadErrors.Load() }},
	{retries, "", func(s *pager.Stats) uint64 { return s.Retried.Load() }},
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{faults, pages, events, ahead, reads, errs, retries, guests, missing, parked} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	sums, n, lacking, waiting := m.sum()
	for i, s := range series {
		var labels []string
		if s.label != "" {
			labels = []string{s.label}
		}
		ch <- prometheus.MustNewConstMetric(s.desc, prometheus.CounterValue, float64(sums[i]), labels...)
	}
	gauge := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	gauge(guests, n)
	gauge(missing, lacking)
	gauge(parked, waiting)
}

// sum adds up all guests, those that have ended too.
func (m *Metrics) sum() (sums []uint64, n, lacking, waiting uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums = append(sums, m.sums...)
	for g := range m.guests {
		st := g.Stats()
		for i, s := range series {
			sums[i] += s.value(st)
		}
		n++
		lacking += g.Missing()
		waiting += st.Parked.Load()
	}
	return sums, n, lacking, waiting
}
