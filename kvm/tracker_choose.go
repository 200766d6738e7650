//go:build linux && amd64

package kvm

import "github.com/guestmm/guestmm/uffd"

// TrackerUse says what stores are tracked for.
type TrackerUse struct {
	// LiveSnapshots of the memory are taken while it is tracked, or a fault server
	// brings its pages: both need the one userfaultfd that a mapping can have.
	LiveSnapshots bool
	// DeviceStores: vhost, or whoever else uses the host's mapping, stores to the
	// memory and does not tell.
	DeviceStores bool
	// ManyDirty: a vCPU stores to more pages between two harvests than its ring has
	// entries (VMOptions.RingEntries).
	ManyDirty bool
}

// CheapestTracker returns, of the trackers that this host has and that see all stores
// of the use, the one that was found to cost least, and why in one sentence. Where no
// tracker sees them all it returns the log, and says so. It measures nothing: the order
// is that of one host, and another may have another.
//
// Measured once by BenchmarkTrackers on a nested host, for 1 GiB of which a vCPU has
// stored to 100 and 2 600 pages: a harvest took 0.03 and 0.4 ms by ring, 0.1 and 0.5 ms
// by log, and 3 and 8 ms by write protection, which looks at all of the page table.
// Stores cost about the same by ring and by log, rings that fill up included, and
// up to twice as much by write protection, as the host's page table takes part.
func (s *System) CheapestTracker(u TrackerUse) (Tracker, string) {
	wp := uffd.HaveWPAsync() == nil && uffd.HavePagemapScan() == nil
	switch {
	case u.DeviceStores && wp && !u.LiveSnapshots:
		return TrackByWriteProtection, "KVM does not see what devices store through the host's mapping, and this tracker does"
	case u.DeviceStores && u.LiveSnapshots:
		return TrackByLog, "no tracker sees stores of devices beside live snapshots: have the devices tell, and KVM's log tell the rest"
	case u.DeviceStores:
		return TrackByLog, "this host has no tracker that sees stores of devices (Linux 6.7): have the devices tell, and KVM's log tell the rest"
	case s.host.dirtyRing == 0:
		return TrackByLog, "a harvest copies a bit for each page, where write protection looks at the whole page table, and this host has no dirty ring (Linux 5.11)"
	case u.ManyDirty:
		return TrackByLog, "a ring that is full stops its vCPU until it was emptied, and a bitmap is never full"
	}
	return TrackByRing, "a harvest costs what is dirty, and does not look at the rest"
}
