package pager

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/uffd"
)

// Rest is what becomes of pages that a lazily restored guest does not touch.
type Rest uint8

const (
	// FillRest brings them in the background, in runs of 64 KiB, and then lets go
	// of the memory and of the file.
	FillRest Rest = iota
	// LeaveRest leaves them in the file until somebody touches them: the restore
	// goes on for the guest's life.
	LeaveRest
)

// WorkingSets is what is done about the pages that a guest needs first.
type WorkingSets uint8

const (
	// ReplayAndRecord replays the set that was recorded for the file, if there is
	// one, and records what the guest touches beyond it.
	ReplayAndRecord WorkingSets = iota
	// ReplayOnly replays and writes nothing.
	ReplayOnly
	// NoWorkingSet does neither.
	NoWorkingSet
)

// RestoreOptions are those of StartRestore. The zero value will do but for
// Fail, which the default policy needs.
type RestoreOptions struct {
	// Name is for errors; the path of the file if empty.
	Name string
	// Server serves the guest. Nil: one of its own, which ends with the restore.
	Server *Server
	// Backing says what each region is made of: BackingMemfd or BackingHugetlb,
	// which Go code reaches beside the mapping that faults. Nil: as the file says.
	Backing func(snapfile.Region) guestmem.Backing

	// OnFailure is what becomes of the guest when a page cannot be had, as of a
	// damaged chunk: FailGuest or Park (R12).
	OnFailure Policy
	// Fail is called once when the restore has failed: see GuestOptions.Fail. vCPUs
	// and devices get EFAULT for all of the memory by then. It stops the vCPUs, and
	// then calls Close, or has it called.
	Fail  func(error)
	Retry Retry

	Rest Rest
	// Parallel is how many goroutines replay and fill at a time. 0 means two, or one
	// where Go has no more than two processors: the guest's faults want one too.
	Parallel int
	// Pause is that of Fill.
	Pause time.Duration
	// WorkingSets and WorkingSet, the path of the set's file: that of the snapshot
	// file followed by WorkingSetSuffix if empty. A set that is damaged or of
	// another file is passed over, and replaced: WorkingSetErr says so.
	WorkingSets WorkingSets
	WorkingSet  string
	// RecordFor is how long the filling of the rest is put off where there is no
	// set to replay, so that there is something to record: what was filled does
	// not fault. 0 means a second; a negative one that nothing is put off. It is ten
	// times as long at most for a guest that does not run yet, and so misses nothing.
	RecordFor time.Duration

	OnProgress func(Progress)
	Observe    func(Outcome, time.Duration)

	// wrap has tests come between the file and the guest.
	wrap func(Source) Source
	// writeFault and after are those of GuestOptions.
	writeFault func(ctx context.Context, page uint64) error
	after      func(d time.Duration, fn func()) *time.Timer
}

// A Restore is a Memory that comes back from a snapshot file while its guest
// runs. Its methods are safe for concurrent use.
type Restore struct {
	o       RestoreOptions
	source  *fileSource
	server  *Server
	guest   *Guest
	regions []*guestmem.Region
	image   Identity

	looked chan struct{} // closed once set is what it is
	set    *WorkingSet   // what is replayed; immutable once looked is closed
	done   chan struct{}

	mu     sync.Mutex
	setErr error // mu
}

// StartRestore gives a memory the regions of a snapshot file, with what they
// hold still in the file: it returns at once, whatever their size, and their
// pages come as vCPUs, devices and Go code touch them, the recorded working set
// first, and the rest behind their backs. In the end the regions are as any
// others, and Done says so.
//
// The memory has nothing where the regions go, and no vCPU runs on it and
// nobody reads there before StartRestore has returned. The file stays open
// until Done is closed; it is the caller's.
//
// While it goes on, ReadAt, WriteAt, slices, discards and live snapshots work as
// ever. What cannot be read of the file, damaged chunks above all, is an error to
// who wants it and never a page: Go code gets it as the error of its access;
// for a vCPU see OnFailure.
//
// Close the Restore before the Memory.
//
// Errors, with nothing kept: ErrInvalid; those of AddRegion, of the file, and of
// uffd.Open; ErrNotSupported. Linux 4.11, and 5.19 for live snapshots meanwhile.
func StartRestore(ctx context.Context, m *guestmem.Memory, f *snapfile.File, o RestoreOptions) (*Restore, error) {
	if o.Name == "" {
		o.Name = f.Path()
	}
	fail := func(err error) (*Restore, error) {
		return nil, &Error{Op: "restore", Guest: o.Name, Err: err}
	}
	switch {
	case ctx.Err() != nil:
		return fail(ctx.Err())
	case o.OnFailure != FailGuest && o.OnFailure != Park:
		return fail(fmt.Errorf("%w: policy %v", ErrInvalid, o.OnFailure))
	case o.OnFailure == FailGuest && o.Fail == nil:
		return fail(fmt.Errorf("%w: no way to fail the guest", ErrInvalid))
	case o.Rest > LeaveRest || o.WorkingSets > NoWorkingSet:
		return fail(fmt.Errorf("%w: rest %d, working sets %d", ErrInvalid, o.Rest, o.WorkingSets))
	}
	source, err := newFileSource(f)
	if err != nil {
		return fail(err)
	}
	r := &Restore{o: o, source: source, image: Identity(f.ID()), looked: make(chan struct{}), done: make(chan struct{})}
	if r.o.WorkingSet == "" {
		r.o.WorkingSet = f.Path() + WorkingSetSuffix
	}
	if err := r.addRegions(m); err != nil {
		return fail(err)
	}
	if err := r.serve(); err != nil {
		return fail(errors.Join(err, removeRegions(m, r.regions)))
	}
	go r.fill()
	go r.watch()
	return r, nil
}

// fill looks for what is to be replayed and has it come, and the rest. The guest may
// run meanwhile: reading a set takes milliseconds for each GiB in it.
func (r *Restore) fill() {
	defer close(r.looked)
	var err error
	if r.o.WorkingSets != NoWorkingSet {
		r.set, err = loadWorkingSet(r.o.WorkingSet, r.image, r.source.Size()/smallPage)
	}
	r.mu.Lock()
	r.setErr = err
	r.mu.Unlock()
	putOff := time.Duration(0)
	if r.o.WorkingSets == ReplayAndRecord && r.set == nil && r.o.RecordFor >= 0 {
		if putOff = r.o.RecordFor; putOff == 0 {
			putOff = time.Second
		}
	}
	r.guest.startFillWith(r.set, putOff)
}

// addRegions makes the regions; after an error there are none.
func (r *Restore) addRegions(m *guestmem.Memory) error {
	for _, sr := range r.source.regions {
		ro := regionOptions(sr, r.o.Backing)
		var reg *guestmem.Region
		err := fmt.Errorf("%w: a lazy region of backing %v", ErrInvalid, ro.Backing)
		if ro.Backing == guestmem.BackingMemfd || ro.Backing == guestmem.BackingHugetlb {
			reg, err = m.AddRegion(ro)
		}
		if err != nil {
			return errors.Join(err, removeRegions(m, r.regions))
		}
		r.regions = append(r.regions, reg)
	}
	return nil
}

func removeRegions(m *guestmem.Memory, regions []*guestmem.Region) error {
	var errs []error
	for _, reg := range regions {
		errs = append(errs, m.RemoveRegion(reg))
	}
	return errors.Join(errs...)
}

// serve registers the regions and has a guest serve them.
func (r *Restore) serve() (err error) {
	fd, arming, err := openForRegions(r.regions)
	if err != nil {
		return err
	}
	defer fd.Close() // the guest has its own
	o := GuestOptions{
		Name: r.o.Name, FD: fd, Source: r.source, Image: r.image,
		OnFailure: r.o.OnFailure, Fail: r.o.Fail, Retry: r.o.Retry,
		Fill:       Fill{Parallel: r.o.Parallel, Pause: r.o.Pause},
		OnProgress: r.o.OnProgress, Observe: r.o.Observe,
		beforeRelease: r.release, fillLater: true, bar: bar, writeFault: r.o.writeFault, after: r.o.after,
	}
	if o.Fill.Parallel <= 0 {
		o.Fill.Parallel = max(1, min(2, runtime.GOMAXPROCS(0)-1))
	}
	if r.o.wrap != nil {
		o.Source = r.o.wrap(r.source)
	}
	if r.o.Rest == FillRest {
		o.Fill.Background = FillAll
	}
	if r.o.WorkingSets == ReplayAndRecord {
		o.Recording = Record
	}
	if o.Fail == nil {
		o.Fail = func(error) {}
	}
	for _, reg := range r.regions {
		o.Regions = append(o.Regions, Region{
			Start: reg.Slot(), Size: reg.Size(), Offset: uint64(reg.Base()), PageSize: reg.PageSize(), Of: reg, Arming: arming,
		})
	}
	if r.server = r.o.Server; r.server == nil {
		r.server = NewServer(Options{})
	}
	r.guest, err = r.server.Add(o)
	for _, reg := range r.regions {
		if err == nil {
			err = reg.SetFaultServer(r.guest.FaultServer(), guestmem.PageAbsent)
		}
	}
	if err == nil {
		return nil
	}
	if r.guest != nil {
		r.guest.Close()
	}
	if r.o.Server == nil {
		r.server.Close()
	}
	return err
}

// openForRegions makes a userfaultfd and registers the slots of regions with it,
// for write protection too where the host can.
func openForRegions(regions []*guestmem.Region) (*uffd.FD, Arming, error) {
	fd, err := uffd.Open(uffd.Options{
		Required: uffd.FeatureEventRemove | uffd.FeatureEventUnmap | uffd.FeatureMissingShmem,
		Optional: uffd.FeatureMissingHugetlb | uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem,
	})
	if err != nil {
		return nil, 0, err
	}
	mode, arming := uffd.Missing, NotArmed
	if fd.Features().Has(uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem) {
		mode, arming = uffd.Missing|uffd.WP, ArmForSnapshots
	}
	for _, reg := range regions {
		if _, err := fd.Register(reg.Slot(), reg.Size(), mode); err != nil {
			return nil, 0, errors.Join(err, fd.Close())
		}
	}
	return fd, arming, nil
}

// bar takes what vCPUs and devices see of a region away for good, once nobody can say
// what it should hold: who waits for a page, and whoever touches one later, gets EFAULT.
// Waiting on would not do. A vCPU that KVM has read the guest's page tables for waits
// inside the kernel where no signal reaches it, so that nobody could stop it and then
// call Close. Zeroes and pages of the file are out of the question. (Where it is the page
// tables that cannot be read, KVM gives the guest a page fault in place of an error. Its
// handler is barred, too: the vCPU shuts down.)
//
// A region that the Memory has removed is passed over: its addresses may be somebody
// else's by now, and the kernel tells of the removal only after that.
func bar(reg *guestmem.Region) { reg.WithSlot(barAccess) }

// release has the regions be their own again, once every page is there: it
// returns true when none of them needs the pager any more, and is called again
// later else. Slices that are held and snapshots that are open keep it waiting.
func (r *Restore) release() bool {
	for _, reg := range r.regions {
		if !r.guest.releaseRegion(reg) {
			return false
		}
	}
	return true
}

// watch cleans up behind the guest.
func (r *Restore) watch() {
	<-r.guest.Done()
	<-r.looked
	r.saveSet()
	if r.o.Server == nil {
		r.server.Close()
	}
	close(r.done)
}

// saveSet writes down what the guest has touched, if that is news.
func (r *Restore) saveSet() {
	if r.o.WorkingSets != ReplayAndRecord {
		return
	}
	ws := r.guest.WorkingSet()
	if len(ws.Runs) == 0 {
		return
	}
	var err error
	if r.set != nil {
		ws, err = r.set.Merge(ws)
	}
	if err == nil {
		err = saveWorkingSet(r.o.WorkingSet, ws)
	}
	r.mu.Lock()
	r.setErr = errors.Join(r.setErr, err)
	r.mu.Unlock()
}

// Done is closed when the restore has ended: with a nil Err all is there, and
// nothing of this package is used any more.
func (r *Restore) Done() <-chan struct{} { return r.done }

// Err returns why it has ended, as Guest.Err does.
func (r *Restore) Err() error { return r.guest.Err() }

// Wait returns Err once the restore has ended, or ctx's error.
func (r *Restore) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Guest returns who is served: its counters, what is missing, and Retry for
// pages that are parked.
func (r *Restore) Guest() *Guest { return r.guest }

// Regions returns the regions that were made, in order of address.
func (r *Restore) Regions() []*guestmem.Region { return slices.Clone(r.regions) }

// Replayed returns how many pages the working set has that is replayed. It waits
// until the set was read.
func (r *Restore) Replayed() uint64 {
	<-r.looked
	if r.set == nil {
		return 0
	}
	return r.set.Len()
}

// WorkingSetErr returns what went wrong with the working set, which is nobody's
// failure: a set that was passed over, or could not be written. It waits until the
// set was read.
func (r *Restore) WorkingSetErr() error {
	<-r.looked
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.setErr
}

// Close ends the restore, and has no effect on one that is complete (Done). Before
// that, also where every page is there and a slice or a snapshot keeps it from ending, the memory is of no more use: what is missing stays missing, an error to
// Go code, and vCPUs and devices get EFAULT for all of it, who waits for a page among
// them. Snapshots that are open keep what they have: what was there at their instant.
// It may be called again, and from Fail.
func (r *Restore) Close() error {
	err := r.guest.Close()
	<-r.done
	return err
}
