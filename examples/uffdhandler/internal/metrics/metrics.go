// Package metrics counts what a page-fault handler does, for Prometheus: by
// outcome, summed over all guests that were served since the start.
//
// A guest's counters are the pager's own; they are read when somebody asks,
// so that counting costs a fault nothing more. What a guest that has ended had
// counted is kept, so that no counter ever falls.
//
// Metrics.mu guards the set of guests and the sums of those that have ended;
// no other lock is taken while it is held. All methods are safe for concurrent
// use.
package metrics

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/guestmm/guestmm/uffd/pager"
)

const namespace = "uffdhandler"

// A Guest is what is asked of one that is served.
type Guest interface {
	Stats() *pager.Stats
	Missing() uint64
}

// Metrics are a handler's, in a registry of their own.
type Metrics struct {
	registry  *prometheus.Registry
	clients   *prometheus.CounterVec
	ended     *prometheus.CounterVec
	handovers *prometheus.CounterVec
	stalls    *prometheus.CounterVec
	stalled   prometheus.Gauge
	latency   [3]prometheus.Observer // by pager.Outcome

	mu     sync.Mutex
	guests map[Guest]struct{} // guarded by mu
	sums   []uint64           // of guests that have ended, by series; guarded by mu
}

// New makes Metrics in which nothing has happened yet.
func New() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		clients:   counter("clients_total", "Clients that connected, by what became of their request.", "outcome"),
		ended:     counter("guests_ended_total", "Guests that are served no more, by why.", "outcome"),
		handovers: counter("handovers_total", "Guests handed to and taken from another server.", "direction", "outcome"),
		stalls:    counter("stalls_total", "Times in which no client was let in for a while, by what was lacking.", "reason"),
		stalled: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "stalled",
			Help: "Sockets of which nobody is let in now, for want of descriptors or memory."}),
		guests: make(map[Guest]struct{}),
		sums:   make([]uint64, len(series)),
	}
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: "fault_seconds",
		Help:    "Time from the reading of a fault to its answer.",
		Buckets: prometheus.ExponentialBuckets(1e-6, 4, 12),
	}, []string{"outcome"})
	for o := range m.latency {
		m.latency[o] = latency.WithLabelValues(pager.Outcome(o).String())
	}
	m.registry.MustRegister(m, m.clients, m.ended, m.handovers, m.stalls, m.stalled, latency,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Client counts one that connected.
func (m *Metrics) Client(outcome string) { m.clients.WithLabelValues(outcome).Inc() }

// Handover counts a guest that was, or should have been, handed over.
func (m *Metrics) Handover(direction, outcome string) {
	m.handovers.WithLabelValues(direction, outcome).Inc()
}

// StallBegins counts a time in which nobody is let in, until StallEnds.
func (m *Metrics) StallBegins(reason string) {
	m.stalls.WithLabelValues(reason).Inc()
	m.stalled.Inc()
}

// StallEnds ends it.
func (m *Metrics) StallEnds() { m.stalled.Dec() }

// Observe notes how long a fault took.
func (m *Metrics) Observe(o pager.Outcome, d time.Duration) {
	if int(o) < len(m.latency) {
		m.latency[o].Observe(d.Seconds())
	}
}

// Add has a guest's counters shown.
func (m *Metrics) Add(g Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guests[g] = struct{}{}
}

// Ended takes a guest out; what it had counted stays.
func (m *Metrics) Ended(g Guest, outcome string) {
	m.ended.WithLabelValues(outcome).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.guests[g]; !ok {
		return
	}
	delete(m.guests, g)
	for i, s := range series {
		m.sums[i] += s.value(g.Stats())
	}
}
