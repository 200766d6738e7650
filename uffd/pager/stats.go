package pager

import "go.uber.org/atomic"

// Stats count what became of faults and pages since the guest was added. They
// only grow, can be read at any time, and print and marshal as numbers.
type Stats struct {
	// Faults read, by what they were about.
	Missing atomic.Uint64 `json:"faults_missing"`
	Minor   atomic.Uint64 `json:"faults_minor"`
	Written atomic.Uint64 `json:"faults_write_protect"`
	// Joined faults were for pages already on their way.
	Joined atomic.Uint64 `json:"faults_joined"`
	// Outside faults were for no region's page.
	Outside atomic.Uint64 `json:"faults_outside"`

	// What became of pages.
	Copied    atomic.Uint64 `json:"pages_copied"`    // installed from the image
	Continued atomic.Uint64 `json:"pages_continued"` // mapped from the cache
	Zeroed    atomic.Uint64 `json:"pages_zeroed"`    // zeroes, where that is the content
	Already   atomic.Uint64 `json:"pages_already"`   // were there (EEXIST); the waiters were woken
	Removed   atomic.Uint64 `json:"pages_removed"`   // given back by the guest
	Gone      atomic.Uint64 `json:"pages_gone"`      // no longer mapped or registered (ENOENT)
	Parked    atomic.Uint64 `json:"pages_parked"`    // cannot be read, and wait for Retry
	Failed    atomic.Uint64 `json:"pages_failed"`    // could not be read for good
	Prefetch  atomic.Uint64 `json:"pages_ahead"`     // of Copied: installed before they were asked for

	// Retried installs found a layout change under way (EAGAIN), or no memory; forks
	// whose descriptor found no room count along.
	Retried atomic.Uint64 `json:"installs_retried"`
	// ReadErrors are reads of the source that failed, each attempt counted.
	ReadErrors atomic.Uint64 `json:"source_errors"`
	// Reads of the source.
	Reads atomic.Uint64 `json:"source_reads"`

	// Layout events, and those that were for nothing that is served here.
	Removes atomic.Uint64 `json:"events_remove"`
	Remaps  atomic.Uint64 `json:"events_remap"`
	Unmaps  atomic.Uint64 `json:"events_unmap"`
	Forks   atomic.Uint64 `json:"events_fork"`
	Strays  atomic.Uint64 `json:"events_stray"`
}

// An Outcome is how a fault was answered, for GuestOptions.Observe.
type Outcome uint8

const (
	OutcomeCopied Outcome = iota
	OutcomeContinued
	OutcomeZeroed
)

func (o Outcome) String() string {
	return [...]string{"copied", "continued", "zeroed"}[o]
}
