package testutil

import "testing"

// errorCounter counts what a test is told.
type errorCounter struct {
	testing.TB
	n int
}

func (c *errorCounter) Helper()               {}
func (c *errorCounter) Errorf(string, ...any) { c.n++ }

func TestPanics(t *testing.T) {
	var c errorCounter
	Panics(&c, "panics", func() { panic("as it is to") })
	if c.n != 0 {
		t.Error("a panic counts as none")
	}
	Panics(&c, "returns", func() {})
	if c.n != 1 {
		t.Errorf("%d errors for a function that returns, want 1", c.n)
	}
}

func TestLeftovers(t *testing.T) {
	left := Leftovers()
	on := make(chan struct{})
	go func() { <-on }()
	if got := takeStock(); len(goroutines()) == 0 || len(got.goroutines) == 0 {
		t.Error("no goroutine is found")
	}
	close(on)
	if got := left(); len(got) != 0 {
		t.Errorf("left over: %q", got)
	}
}
