//go:build !linux

package testutil

import "testing"

// A UFFDFeature is something of userfaultfd(2) that a test may need.
type UFFDFeature struct{ name string }

func (f UFFDFeature) String() string { return f.name }

// The features, none of which this system has.
var (
	UFFDMissing       = UFFDFeature{"missing faults, anonymous"}
	UFFDEvents        = UFFDFeature{"fork, remap, remove and unmap events"}
	UFFDMissingShmem  = UFFDFeature{"missing faults, shmem"}
	UFFDThreadID      = UFFDFeature{"thread ids"}
	UFFDWPAnon        = UFFDFeature{"write-protect faults, anonymous"}
	UFFDMinorShmem    = UFFDFeature{"minor faults, shmem"}
	UFFDWPShmem       = UFFDFeature{"write-protect faults, shmem"}
	UFFDWPUnpopulated = UFFDFeature{"write-protecting absent pages"}
	UFFDPoison        = UFFDFeature{"poison"}
	UFFDWPAsync       = UFFDFeature{"asynchronous write-protection"}
	UFFDMove          = UFFDFeature{"move"}
)

var otherSystem = &lack{reason: "this system is not Linux", cure: "run the test on Linux"}

// RequireKVM skips t: there is no KVM here.
func RequireKVM(t testing.TB) {
	t.Helper()
	require(t, needKVM, otherSystem)
}

// RequireUFFD skips t: there is no userfaultfd here.
func RequireUFFD(t testing.TB, feature UFFDFeature) {
	t.Helper()
	require(t, needUFFD, otherSystem)
}

// HugePages skips t: there is no pool of them here.
func HugePages(t testing.TB, n int) {
	t.Helper()
	require(t, needHugePages, otherSystem)
}

// NoHugePages skips t.
func NoHugePages(t testing.TB) {
	t.Helper()
	require(t, needHugePages, otherSystem)
}
