package pager

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Options are those of a Server. The zero value will do.
type Options struct {
	// Workers is how many reads of sources may be under way, on top of one for
	// each guest, which no other guest can take. 0 means 8. Each has a buffer
	// of 64 KiB, and of 2 MiB once it has served a huge page.
	Workers int
	// SpinFor bounds how long the reader of a guest's events spins before it
	// sleeps, when spinning has paid of late. 0 means 50 µs, a negative one no
	// spinning. At most GOMAXPROCS-1 readers spin at a time.
	SpinFor time.Duration
}

// A Policy is what becomes of a guest that cannot be served any more (R12).
// In no case is anything answered with zeroes.
type Policy uint8

const (
	// FailGuest ends the guest: GuestOptions.Peer is killed, and Fail is
	// called. Until then the descriptor stays open and nobody who waits goes on.
	FailGuest Policy = iota
	// Standby hands descriptor, states and waiting faults to
	// GuestOptions.Standby. The guest does not notice.
	Standby
	// Park leaves who waits for an unreadable page waiting until Retry, and
	// serves the other pages. When it is the server that ends, everybody waits
	// until Detach has been called and somebody takes over.
	Park
)

func (p Policy) String() string {
	switch p {
	case FailGuest:
		return "fail the guest"
	case Standby:
		return "standby"
	case Park:
		return "park"
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// A ForkPolicy is what becomes of the memory of a child that a guest's process
// forks, if its descriptor tells of forks.
type ForkPolicy uint8

const (
	// ForkServe serves the child as a guest of its own, which OnFork is told of.
	ForkServe ForkPolicy = iota
	// ForkRefuse has the guest's policy applied with ErrForked. The child waits
	// as long as the guest's descriptor is open, and then gets SIGBUS for what
	// is missing: it never sees zeroes.
	ForkRefuse
)

// Retry says how a read that failed is tried again.
type Retry struct {
	Attempts int           // in all; 0 means 3
	Backoff  time.Duration // before the second, doubled for each after it; 0 means 1 ms
	MaxWait  time.Duration // between two; 0 means 1 s
	Timeout  time.Duration // for one attempt, by the context given to the source; 0 means none
}

// Fill says what is installed before it is asked for.
type Fill struct {
	// Replay is installed first, in the order of its first touches.
	Replay *WorkingSet
	// Background fills all the rest. Once every page is there the memory is
	// unregistered and the descriptor closed, and Done says so with a nil Err.
	Background Background
	// Parallel bounds the guest's own reads for this; 0 means 2. All guests'
	// together take half of Options.Workers at most, and stand back while any
	// guest's fault waits for a worker.
	Parallel int
	// Pause is waited between two runs of the background fill.
	Pause time.Duration
}

// Background says whether memory is filled without being asked for.
type Background uint8

const (
	// NoBackground leaves what is never touched absent.
	NoBackground Background = iota
	// FillAll reads everything, in runs of 64 KiB.
	FillAll
)

// ZeroPolicy is what becomes of ranges that a source knows to be zero.
type ZeroPolicy uint8

const (
	// ServeZeroes answers faults there with zeroes, without reading.
	ServeZeroes ZeroPolicy = iota
	// LeaveToKernel unregisters runs of 1 MiB and more, so that they take no
	// round trip. Each costs the guest's process up to two more mappings, of
	// which it may have vm.max_map_count. It is for ModeCopy regions that are
	// not armed, on private memory.
	LeaveToKernel
)

// Recording says whether the pages that the guest touches are written down.
type Recording uint8

const (
	// NotRecorded keeps nothing.
	NotRecorded Recording = iota
	// Record keeps the set of pages that faulted: see Guest.WorkingSet.
	Record
)

// GuestOptions are those of one guest. FD, Regions and Source are needed.
type GuestOptions struct {
	Name string
	// FD is duplicated at once and stays the caller's. The regions have been
	// registered with it.
	FD      *uffd.FD
	Regions []Region
	Source  Source
	// Image names the image, for working sets and handing over. Zero: nothing
	// is checked.
	Image Identity

	// Ledger has the states of the pages kept in this file, from NewLedgerFile,
	// for Recover to go on from in another process when this one is killed. It
	// is the guest's alone and stays the caller's. Not for ModeContinue.
	Ledger *os.File

	OnFailure Policy
	// Peer is the process whose memory this is. When it ends, so does serving
	// it (ErrPeerGone).
	Peer *Peer
	// Fail is called once if the guest ends by an error, after Peer was killed
	// under FailGuest. Without a Peer it must see to it that the guest never
	// runs again (have KVM_RUN return an error to who runs the vCPU), and then
	// call Guest.Close.
	Fail func(error)
	// Standby is called once under the policy of that name. It owns the
	// Takeover.
	Standby func(*Takeover, error)

	Retry     Retry
	Fill      Fill
	Zeroes    ZeroPolicy
	Recording Recording
	Fork      ForkPolicy

	// OnWrite is called on a worker before a page that is armed becomes
	// writable. An error has the guest's policy applied, and the page stays
	// armed. Nil: it is made writable at once.
	OnWrite func(ctx context.Context, page addr.HVA, offset uint64) error
	// OnFork is told of a child that is served. It has the guest's options, but
	// that Fail is not called when its process ends.
	OnFork func(child *Guest)
	// OnProgress is called now and then while filling, and at its end; by one
	// goroutine at a time.
	OnProgress func(Progress)
	// Observe is called with how a fault was answered and how long that took
	// from its being read. It must be quick, and safe for concurrent use.
	Observe func(Outcome, time.Duration)

	// beforeRelease is asked, by a goroutine of its own, once every page is there:
	// true lets go of the memory, false has it asked again a little later.
	beforeRelease func() bool
	// bar has every access to a region fail: see Guest.barMemory.
	bar func(*guestmem.Region)
	// writeFault has tests stand in for Region.WriteFault of all regions.
	writeFault func(ctx context.Context, page uint64) error
	// fillLater has filling wait for startFill.
	fillLater bool
	// after has tests stand in for time.AfterFunc where filling is put off.
	after func(d time.Duration, fn func()) *time.Timer

	// LivelockLimit is how many times one page may be answered without being
	// installed, or its write fault in a row though it was disarmed, before
	// that is ErrLivelock; 0 means 1 000.
	LivelockLimit int
	// RetryLimit is how many times in a row an install may answer EAGAIN, tried
	// every 250 µs; 0 means 240 000, a minute. What there is no memory for, or no
	// descriptor, is tried every 10 ms, for as long.
	RetryLimit int
}

// Progress is how far filling has come, in pages of 4 KiB.
type Progress struct {
	Done, Total uint64
	Phase       string // "replay", "background" or "complete"
	// Err says why filling has ended without being complete.
	Err error
}

func (o *Options) setDefaults() {
	if o.Workers <= 0 {
		o.Workers = 8
	}
	if o.SpinFor == 0 {
		o.SpinFor = 50 * time.Microsecond
	}
}

func (o *GuestOptions) setDefaults() {
	if o.Retry.Attempts <= 0 {
		o.Retry.Attempts = 3
	}
	if o.Retry.Backoff <= 0 {
		o.Retry.Backoff = time.Millisecond
	}
	if o.Retry.MaxWait <= 0 {
		o.Retry.MaxWait = time.Second
	}
	if o.Fill.Parallel <= 0 {
		o.Fill.Parallel = 2
	}
	if o.LivelockLimit <= 0 {
		o.LivelockLimit = 1000
	}
	if o.RetryLimit <= 0 {
		o.RetryLimit = 240_000
	}
}

// check holds the options against each other.
func (o *GuestOptions) check() error {
	invalid := func(what string) error {
		return &Error{Op: "add guest", Guest: o.Name, Err: fmt.Errorf("%w: %s", ErrInvalid, what)}
	}
	switch {
	case o.Source == nil:
		return invalid("no source")
	case o.OnFailure > Park:
		return invalid(o.OnFailure.String())
	case o.OnFailure == Standby && o.Standby == nil:
		return invalid("standby policy without a standby")
	case o.OnFailure == FailGuest && o.Peer == nil && o.Fail == nil:
		return invalid("no way to fail the guest: neither Peer nor Fail")
	}
	if ws := o.Fill.Replay; ws != nil {
		if err := ws.check(o.Image, o.Source.Size()/smallPage); err != nil {
			return &Error{Op: "replay working set", Guest: o.Name, Err: err}
		}
	}
	return nil
}
