package uffd

import (
	"errors"
	"fmt"
	"sync"
)

// ErrInconclusive: a probe could not be made, and what it asks for may be there
// or not; the cause, such as EPERM or EMFILE, is wrapped beside it. The next
// call tries again.
var ErrInconclusive = errors.New("the probe is inconclusive")

// A probe finds out whether the host has something, by trying it. What it has
// found is kept; that it could not find out is not.
type probe struct {
	name   string // "minor-shmem"
	oldest string // kernel, for messages; never used to decide
	cure   string // what helps where the kernel is recent enough
	// try returns nil, an error that wraps ErrNotSupported, or one that says
	// why it could not be tried.
	try func() error

	mu   sync.Mutex
	done bool  // guarded by mu
	err  error // guarded by mu
}

// run is what every HaveX does.
func (p *probe) run() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return p.err
	}
	err := p.try()
	switch {
	case err == nil:
		p.done = true
	case errors.Is(err, ErrNotSupported):
		p.done = true
		p.err = opError("probe "+p.name, fmt.Errorf("%w (Linux %s or later has it)", err, p.oldest))
		return p.err
	default:
		return opError("probe "+p.name, fmt.Errorf("%w: %w", ErrInconclusive, err))
	}
	return nil
}

// HaveUserfaultfd reports whether a userfaultfd can be made that hears of the
// kernel's faults too, vCPUs' among them (4.3). Like all probes it tries what it
// is asked for, and returns nil, an error that wraps ErrNotSupported and names
// the oldest kernel that has it, or one that wraps ErrInconclusive. Probes are
// safe for concurrent use; a conclusive answer is kept.
func HaveUserfaultfd() error { return probeUserfaultfd.run() }

// HaveDevice reports whether /dev/userfaultfd is there and may be opened (6.1).
func HaveDevice() error { return probeDevice.run() }

// HaveMissingShmem reports whether shared memory can be served page by page
// (4.11).
func HaveMissingShmem() error { return probeMissingShmem.run() }

// HaveMinorShmem reports whether pages of the page cache can be mapped on demand
// (5.14).
func HaveMinorShmem() error { return probeMinorShmem.run() }

// HaveWPAnonymous reports whether writes to private memory can be trapped (5.7;
// arm64 6.10).
func HaveWPAnonymous() error { return probeWPAnonymous.run() }

// HaveWPShmem reports whether writes to shared memory can be trapped (5.19).
func HaveWPShmem() error { return probeWPShmem.run() }

// HaveWPUnpopulated reports whether arming reaches pages that are not there
// (6.4).
func HaveWPUnpopulated() error { return probeWPUnpopulated.run() }

// HaveWPAsync reports whether the kernel notes writes to armed pages by itself,
// for PAGEMAP_SCAN to find (6.7).
func HaveWPAsync() error { return probeWPAsync.run() }

// HavePagemapScan reports whether there is PAGEMAP_SCAN (6.7).
func HavePagemapScan() error { return probePagemapScan.run() }

// HaveMove reports whether pages can be moved in (6.8).
func HaveMove() error { return probeMove.run() }

// HavePoison reports whether pages can be poisoned (6.6).
func HavePoison() error { return probePoison.run() }

// HaveExactAddress reports whether faults tell their very address (5.18).
func HaveExactAddress() error { return probeExactAddress.run() }

// HaveThreadID reports whether faults tell who has faulted (4.14).
func HaveThreadID() error { return probeThreadID.run() }

// HaveEventRemove reports whether one is told of pages that are given back
// (4.11).
func HaveEventRemove() error { return probeEventRemove.run() }

// HaveEventRemap reports whether one is told of mappings that move (4.11).
func HaveEventRemap() error { return probeEventRemap.run() }

// HaveEventUnmap reports whether one is told of mappings that end (4.11).
func HaveEventUnmap() error { return probeEventUnmap.run() }

// HaveEventFork reports whether one may ask to be told of forks (4.11), which
// needs CAP_SYS_PTRACE. It forks nothing.
func HaveEventFork() error { return probeEventFork.run() }

// HaveHugetlb reports whether hugetlb memory of 2 MiB pages can be served
// (4.11). It takes a page of the pool for a moment.
func HaveHugetlb() error { return probeHugetlb.run() }

// HaveHugetlbMinor reports whether that can be done from the page cache (5.13).
func HaveHugetlbMinor() error { return probeHugetlbMinor.run() }

// HaveHugetlbWP reports whether writes to hugetlb memory can be trapped (5.19).
func HaveHugetlbWP() error { return probeHugetlbWP.run() }

// The probes. That of userfaultfd itself is first: the others are inconclusive
// without it.
var (
	probeUserfaultfd = newProbe("userfaultfd", "4.3", "grant access to "+deviceName+", or CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd to 1", tryUserfaultfd)
	probeDevice      = newProbe("device", "6.1", "make "+deviceName+" accessible: mode 0660 and a group of its own", tryDevice)

	probeMissingShmem  = newProbe("missing-shmem", "4.11", "", tryMissingShmem)
	probeMinorShmem    = newProbe("minor-shmem", "5.14", "", tryMinorShmem)
	probeWPAnonymous   = newProbe("wp-anonymous", sinceWP("5.7"), "", tryWPAnonymous)
	probeWPShmem       = newProbe("wp-shmem", sinceWP("5.19"), "", tryWPShmem)
	probeWPUnpopulated = newProbe("wp-unpopulated", sinceWP("6.4"), "", tryWPUnpopulated)
	probeWPAsync       = newProbe("wp-async", sinceWP("6.7"), "", tryWPAsync)
	probePagemapScan   = newProbe("pagemap-scan", "6.7", "", tryPagemapScan)
	probeMove          = newProbe("move", "6.8", "", tryMove)
	probePoison        = newProbe("poison", "6.6", "", tryPoison)
	probeExactAddress  = newProbe("exact-address", "5.18", "", tryExactAddress)
	probeThreadID      = newProbe("thread-id", "4.14", "", tryThreadID)
	probeEventRemove   = newProbe("event-remove", "4.11", "", tryEventRemove)
	probeEventRemap    = newProbe("event-remap", "4.11", "", tryEventRemap)
	probeEventUnmap    = newProbe("event-unmap", "4.11", "", tryEventUnmap)
	probeEventFork     = newProbe("event-fork", "4.11", "run with CAP_SYS_PTRACE", tryEventFork)
	probeHugetlb       = newProbe("hugetlb-missing", "4.11", cureHugetlb, tryHugetlb)
	probeHugetlbMinor  = newProbe("hugetlb-minor", "5.13", cureHugetlb, tryHugetlbMinor)
	probeHugetlbWP     = newProbe("hugetlb-wp", sinceWP("5.19"), cureHugetlb, tryHugetlbWP)
)

const (
	deviceName  = "/dev/userfaultfd"
	cureHugetlb = "reserve 2 MiB pages: sysctl vm.nr_hugepages"
)

// allProbes is the order of the report.
var allProbes = []*probe{
	probeUserfaultfd, probeDevice,
	probeMissingShmem, probeMinorShmem, probeWPAnonymous, probeWPShmem, probeWPUnpopulated, probeWPAsync, probePagemapScan,
	probeMove, probePoison, probeExactAddress, probeThreadID,
	probeEventRemove, probeEventRemap, probeEventUnmap, probeEventFork,
	probeHugetlb, probeHugetlbMinor, probeHugetlbWP,
}

func newProbe(name, oldest, cure string, try func() error) *probe {
	return &probe{name: name, oldest: oldest, cure: cure, try: try}
}
