package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// A tally adds up what a row takes, by contender: making ready, warming up, measuring
// and letting go.
type tally struct {
	began time.Time
	names []string // in the order of the report
	took  map[string]time.Duration
}

func newTally() *tally {
	return &tally{began: time.Now(), took: make(map[string]time.Duration)}
}

// during runs f at the expense of name.
func (t *tally) during(name string, f func()) {
	start := time.Now()
	f()
	if _, ok := t.took[name]; !ok {
		t.names = append(t.names, name)
	}
	t.took[name] += time.Since(start)
}

// write writes one line; who took less than a hundredth of a second is left out.
func (t *tally) write(w io.Writer) {
	var parts []string
	for _, name := range t.names {
		if s := t.took[name].Seconds(); s >= 0.01 {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, s))
		}
	}
	fmt.Fprintf(w, "        took %.2f s: %s\n", time.Since(t.began).Seconds(), strings.Join(parts, ", "))
}
