package uffd

import (
	"errors"
	"fmt"
	"strings"
)

// Status is the verdict of a Check.
type Status uint8

const (
	// OK: it is there, or as it should be.
	OK Status = iota
	// Lack: it is not there, and something cannot be done for that.
	Lack
	// Inconclusive: it could not be found out.
	Inconclusive
	// Note: nothing is wrong, and something is to be kept in mind.
	Note
)

func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Lack:
		return "lack"
	case Inconclusive:
		return "unknown"
	case Note:
		return "note"
	default:
		return fmt.Sprintf("status %d", uint8(s))
	}
}

// A Check is one line of a report on the host.
type Check struct {
	Name   string // "minor-shmem"
	Status Status
	Detail string // what was found
	Cure   string // what to do about it; empty where nothing is to be done
}

// String is "lack  wp-async: what was found; to cure it: what to do".
func (c Check) String() string {
	s := fmt.Sprintf("%-7v %s", c.Status, c.Name)
	if c.Detail != "" {
		s += ": " + c.Detail
	}
	if c.Cure != "" {
		s += "; to cure it: " + c.Cure
	}
	return s
}

// Checks is a report on the host.
type Checks []Check

// CanServe reports whether memory can be served at all: there is a userfaultfd
// to be had that hears of vCPUs. All else that is lacking takes only some ways
// of serving away.
func (cs Checks) CanServe() bool {
	for _, c := range cs {
		if c.Name == probeUserfaultfd.name {
			return c.Status == OK
		}
	}
	return false
}

// String has one check on each line.
func (cs Checks) String() string {
	var b strings.Builder
	for _, c := range cs {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

// Report finds out what this host can and cannot do for userfaultfd, and what
// would help. It makes every probe, and reads /proc and /sys; it changes
// nothing. It takes some milliseconds.
func Report() Checks {
	var cs Checks
	h := thisHost()
	cs = append(cs, h.kernel())
	for _, p := range allProbes {
		cs = append(cs, p.check())
	}
	return append(cs,
		h.syscallAccess(), h.capability(), h.memfd(), h.hugePages(), h.shmemHugePages(), h.mapCount(), h.openFiles(), h.kvm(), h.asyncFaults())
}

func (p *probe) check() Check {
	c := Check{Name: p.name}
	err := p.run()
	switch {
	case err == nil:
		return c
	case errors.Is(err, ErrNotSupported):
		c.Status, c.Cure = Lack, "use Linux "+p.oldest+" or later"
	default:
		c.Status, c.Cure = Inconclusive, p.cure
	}
	c.Detail = strings.ReplaceAll(cause(err).Error(), "\n", "; ")
	switch {
	case p == probeUserfaultfd && !errors.Is(err, ErrNotSupported):
		// Whoever may not is as badly off as who cannot.
		c.Status = Lack
		c.Detail = strings.TrimPrefix(c.Detail, ErrInconclusive.Error()+": ")
	case p != probeDevice && errors.Is(err, ErrNotPermitted):
		c.Detail = "it cannot be tried without a userfaultfd, for which see " + probeUserfaultfd.name
	}
	return c
}
