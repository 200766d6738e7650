package guestmem

import "context"

// Armer is a FaultServer that can write-protect, too: the slot mapping of its
// region is registered with its userfaultfd, which is the only one that a mapping
// may have, so live snapshots arm through it. Where a region's fault server is
// none, Snapshot answers ErrNotSupported.
//
// A write to an armed page is reported to the Armer, which calls Region.WriteFault
// for it and answers nothing itself. WriteFault may have to wait, for a window or for a
// copy, which may in turn wait for a page that the Armer has to bring: so it is called
// where it does not keep the Armer from bringing pages.
type Armer interface {
	FaultServer
	// Arm write-protects the pages [first, first+n), those that are not there
	// too: from the beginning of the call on, whatever it installs in r it installs
	// armed, until Disarm of it. Installs under way have ended, or are armed too, when
	// it returns. It is called while the region's writers wait, so it waits for
	// installs and for nothing else. Arming what is armed is no error.
	Arm(r *Region, first, n uint64) error
	// Disarm ends that for the pages and wakes who waits for them.
	Disarm(r *Region, first, n uint64) error
}

// WriteFault is called by an Armer, or by whoever else hears of it, for a write to
// an armed page of the region: it returns once the page was copied into each snapshot
// that lacks it, and was disarmed. A page that is not armed any more is disarmed once
// more, so that whoever waits for it is woken.
//
// Errors: ctx's; that of Disarm. Safe for concurrent use.
func (r *Region) WriteFault(ctx context.Context, page uint64) error {
	return r.mem.disarmPage(ctx, r, page)
}

// LetGo runs release, which ends the fault server (SetFaultServer with nil) and then
// the registration of the slot mapping with the Armer's userfaultfd, and with it all
// arming: when a lazy restore is over. No snapshot opens meanwhile, so that each is
// armed by the one or by the other. Pages count as written then, and the next
// snapshot arms all of them.
//
// Errors: ErrBusy, and release was not called, while a snapshot lacks pages of the
// region (try again, after Snapshot.Done for instance); that of release.
func (r *Region) LetGo(release func() error) error {
	m := r.mem
	m.layout.Lock()
	defer m.layout.Unlock()
	err := m.snaps.needed(r)
	if err == nil {
		// Without the gate, which SetFaultServer takes to disarm the region.
		err = release()
	}
	if err == nil {
		m.snaps.gate.Lock()
		r.arms.Store(nil)
		m.snaps.gate.Unlock()
		return nil
	}
	return regionError("let go of", r.base, r.size, err)
}
