package guestmem

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Pauser has the vCPUs of a guest out of it for a moment: a kvm.VM is one.
type Pauser interface {
	// Pause returns once no vCPU runs the guest; until Resume none begins to.
	Pause()
	Resume()
}

// SweepMode says who copies the pages that nobody writes.
type SweepMode uint8

// Ways to sweep.
const (
	// SweepInBackground: a goroutine copies them from the beginning.
	SweepInBackground SweepMode = iota
	// SweepOnDemand: nobody, until Sweep is called.
	SweepOnDemand
)

// ArmedAfter says what becomes of armed pages once they were copied. What a guest pays
// for a chain of snapshots, it pays before the sweep or after it, or in the pause:
//
//	              a page's first write while        the next snapshot's    Changed
//	              a snapshot is open and swept      pause
//	KeepArmed     a fault: two switches of          grows with what was    exact
//	              threads, and no copy              written
//	DisarmSwept   nothing                           grows with memory      all of it
//
// In both, nothing is armed, and writes cost nothing, once the last snapshot is closed:
// who takes one, keeps it until it is written to a file, and closes it, need not choose.
// Who holds one open for the next, for an increment, wants KeepArmed; who holds one open
// for its content alone, to clone it or to go back to it, wants DisarmSwept.
type ArmedAfter uint8

// What becomes of armed pages.
const (
	// KeepArmed: they stay armed for as long as a snapshot is open, so that the
	// next one arms only what was written since, and Changed is exact. The first
	// write to each faults, and is not copied.
	KeepArmed ArmedAfter = iota
	// DisarmSwept: once no open snapshot lacks a page, all are disarmed, and
	// writes cost nothing. The next snapshot arms everything, and everything
	// counts as changed before it.
	DisarmSwept
)

// SnapshotOptions say how a snapshot is taken.
type SnapshotOptions struct {
	// Pauser stops the vCPUs; nil: the caller has, or there are none.
	// Its Pause waits for nobody who changes regions or takes a snapshot.
	Pauser Pauser
	// Prepare, if not nil, is called while vCPUs are paused, before memory is
	// frozen: to bring devices to rest, and to finish exits that may yet store
	// (kvm.VM.Save does). An error cancels the snapshot.
	Prepare func() error
	// AtInstant, if not nil, is called while vCPUs are paused and memory is
	// frozen: what it reads is what the snapshot holds. There the owner saves the
	// state of vCPUs and devices. It stores nothing to the memory, waits for nobody who
	// does, and changes no regions. An error cancels the snapshot.
	AtInstant func() error
	// Workers is how many goroutines arm at a time; GOMAXPROCS if 0.
	Workers int
	Sweep   SweepMode
	After   ArmedAfter
}

// Snapshot is the content of a Memory at an instant, while the guest runs on. A
// page is copied into the snapshot's layer before it is first written, or by the
// sweep; until then it is read where it is. Several may be open at once, and each
// page is copied once for each.
//
// Safe for concurrent use.
type Snapshot struct {
	mem    *Memory
	o      SnapshotOptions
	layers []*layer // by base; immutable
	byHome map[*Region]*layer
	stores *uffd.FD   // of the layers; nil: the host has none; immutable
	plans  []*armPlan // of the layers with arms; nil once the snapshot is open
	age    *interval  // immutable once the snapshot is open

	left   atomic.Int64  // pages that are neither copied nor known to be zero
	needs  atomic.Bool   // the parent is to copy pages for it: open, not swept, not failed
	done   chan struct{} // closed once swept, cancelled or failed
	ctx    context.Context
	cancel context.CancelFunc
	users  sync.WaitGroup // who uses the layers; added to under mu

	mu     sync.Mutex
	err    error // why it ended; mu
	ended  bool  // done is closed; mu
	closed bool  // by its owner; mu
	holds  int   // the owner, and each clone that may yet lack a page; mu
	forgot bool  // by its owner; mu
	gone   bool  // the layers are about to go: nobody new uses them; mu
	unkept bool  // it does not count in snapshots.kept; snapshots.mu

	stats snapshotStats
}

// SnapshotRegion describes a region of a snapshot.
type SnapshotRegion struct {
	Name     string
	Base     addr.GPA
	Size     uint64
	PageSize uint64 // of the parent: what is armed and copied at a time
	ReadOnly bool
	Backing  Backing // of the parent
}

// SnapshotStats are figures of one snapshot.
type SnapshotStats struct {
	Pause       time.Duration // from before Pause until after Resume
	Arm         time.Duration // of that, the arming calls
	PagesArmed  uint64        // 4 KiB pages armed for this snapshot
	DirtyRuns   uint64        // arming calls that this took
	PagesPinned uint64        // held for writing, and copied at the instant
	PagesCopied uint64        // into the layer
	PagesZero   uint64        // known to be zero
	PagesLeft   uint64        // neither
	Written     uint64        // pages written since the snapshot before, or ever
}

type snapshotStats struct {
	pause, arm                   atomic.Int64
	armed, runs, pinned, written atomic.Uint64
	copied, zero                 atomic.Uint64
}

var errSnapshotClosed = fmt.Errorf("the snapshot was closed: %w", ErrClosed)

// Regions returns the regions of the snapshot, sorted by Base.
func (s *Snapshot) Regions() []SnapshotRegion {
	out := make([]SnapshotRegion, len(s.layers))
	for i, l := range s.layers {
		out[i] = l.SnapshotRegion
	}
	return out
}

// Done is closed when the snapshot is complete in its layer, and the parent not
// needed any more; or when it was closed, or has failed: then Err says why.
func (s *Snapshot) Done() <-chan struct{} { return s.done }

// Err returns nil while pages are being copied and when all are, ErrClosed
// after Close, and else what the snapshot has failed with: ErrNoMemory where the host
// had none for the layer. The guest runs on in any case.
func (s *Snapshot) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stats returns the snapshot's figures of the moment.
func (s *Snapshot) Stats() SnapshotStats {
	t := &s.stats
	return SnapshotStats{
		Pause: time.Duration(t.pause.Load()), Arm: time.Duration(t.arm.Load()),
		PagesArmed: t.armed.Load(), DirtyRuns: t.runs.Load(), PagesPinned: t.pinned.Load(),
		PagesCopied: t.copied.Load(), PagesZero: t.zero.Load(), PagesLeft: uint64(max(0, s.left.Load())),
		Written: t.written.Load(),
	}
}
