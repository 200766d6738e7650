package main

import (
	"testing"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

func TestSubject(t *testing.T) {
	sub, err := newSubject()
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := workload.Verify(sub); err != nil {
		t.Error(err)
	}
}
