package pager

import "github.com/guestmm/guestmm/cow/snapfile"

// A region of a snapshot file is a source, which knows its zeroes and what it has
// at hand.
var (
	_ Source     = (*snapfile.RegionSource)(nil)
	_ TryReader  = (*snapfile.RegionSource)(nil)
	_ ZeroRanger = (*snapfile.RegionSource)(nil)
	_            = Identity(snapfile.ID{})
)
