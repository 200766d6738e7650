//go:build linux

package server

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/metrics"
	"github.com/guestmm/guestmm/uffd/pager"
)

// A Lifetime says when a Server has done its work.
type Lifetime uint8

const (
	// UntilStopped serves whoever connects.
	UntilStopped Lifetime = iota
	// FirstClient serves until the first client that could be served has gone.
	FirstClient
)

// Options are those of a Server. Source and Log are needed, and one of Listen and
// TakeOver.
type Options struct {
	Listen   string // path of the socket for clients; "": none
	TakeOver string // path of the socket on which guests are handed over to this server; "": none
	Standby  string // path of the socket of the server that guests are handed to; "": none

	Source     pager.Source
	Image      pager.Identity
	WorkingSet *pager.WorkingSet // installed first; nil: none
	Record     string            // path to write the pages that were touched to; "": none

	Policy     pager.Policy
	Background pager.Background
	Lifetime   Lifetime

	// HandshakeTimeout is how long a client may take over its message; 0 means
	// 5 s.
	HandshakeTimeout time.Duration
	// StandbyWait is how long a standby server that is not there is waited for
	// before its guest is killed; 0 means 5 s.
	StandbyWait time.Duration
	// RetryEvery is how often pages are tried again that are parked; 0 means 1 s.
	RetryEvery time.Duration

	Log     *slog.Logger
	Metrics *metrics.Metrics
	// Progress is called with how many bytes of a guest are there, while it is
	// filled; Ended when that is over. Nil: nobody cares.
	Progress func(guest string, done, total uint64)
	Ended    func(guest string)
}

func (o *Options) setDefaults() {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&o.HandshakeTimeout, 5 * time.Second}, {&o.StandbyWait, 5 * time.Second}, {&o.RetryEvery, time.Second}} {
		if *d.value == 0 {
			*d.value = d.or
		}
	}
	if o.Metrics == nil {
		o.Metrics = metrics.New()
	}
	if o.Progress == nil {
		o.Progress = func(string, uint64, uint64) {}
	}
	if o.Ended == nil {
		o.Ended = func(string) {}
	}
}

func (o *Options) check() error {
	switch {
	case o.Listen == "" && o.TakeOver == "":
		return fmt.Errorf("nothing to listen on: %w", pager.ErrInvalid)
	case o.Policy == pager.Standby && o.Standby == "":
		return fmt.Errorf("the policy standby needs the socket of a standby server: %w", pager.ErrInvalid)
	case o.Standby != "" && o.Standby == o.TakeOver:
		return fmt.Errorf("a server cannot be its own standby: %w", pager.ErrInvalid)
	case o.WorkingSet != nil && o.WorkingSet.Image != o.Image:
		return fmt.Errorf("working set: %w", pager.ErrWrongImage)
	}
	return nil
}
