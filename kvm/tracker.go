package kvm

import "fmt"

// Tracker is a way to find out which pages of guest memory were stored to.
type Tracker uint8

const (
	// TrackByLog is DirtyLog.
	TrackByLog Tracker = iota
	// TrackByRing is DirtyRing.
	TrackByRing
	// TrackByWriteProtection is guestmem.Memory.TrackWrites, of a VM with DirtyNone.
	TrackByWriteProtection
)

func (t Tracker) String() string {
	switch t {
	case TrackByLog:
		return "dirty log"
	case TrackByRing:
		return "dirty ring"
	case TrackByWriteProtection:
		return "asynchronous write protection"
	}
	return fmt.Sprintf("tracker %d", uint8(t))
}

// Mode returns what VMOptions.Dirty is for the tracker.
func (t Tracker) Mode() DirtyMode {
	switch t {
	case TrackByLog:
		return DirtyLog
	case TrackByRing:
		return DirtyRing
	}
	return DirtyNone
}
