package uffd

import (
	"fmt"
	"math/bits"
	"runtime"
	"strings"
)

// Features is a set of what a userfaultfd can do: struct uffdio_api's bits.
type Features uint64

// The features, in the order of their bits, with the oldest kernel that has
// each (x86-64; arm64 has write protection from 6.10).
const (
	FeatureFaultWP        Features = 1 << iota // write-protect faults; 5.7
	FeatureEventFork                           // 4.11
	FeatureEventRemap                          // 4.11
	FeatureEventRemove                         // 4.11
	FeatureMissingHugetlb                      // 4.11
	FeatureMissingShmem                        // 4.11
	FeatureEventUnmap                          // 4.11
	FeatureSigbus                              // SIGBUS to who faults, in place of an event; 4.14
	FeatureThreadID                            // 4.14
	FeatureMinorHugetlb                        // 5.13
	FeatureMinorShmem                          // 5.14
	FeatureExactAddress                        // 5.18
	FeatureWPHugetlbShmem                      // 5.19
	FeatureWPUnpopulated                       // arming reaches absent pages; 6.4
	FeaturePoison                              // 6.6
	FeatureWPAsync                             // the kernel resolves write-protect faults itself; 6.7
	FeatureMove                                // 6.8
)

// featureNames has the oldest kernel beside each name, for messages.
var featureNames = [...]struct{ name, oldest string }{
	{"fault-wp", "5.7"},
	{"event-fork", "4.11"},
	{"event-remap", "4.11"},
	{"event-remove", "4.11"},
	{"missing-hugetlb", "4.11"},
	{"missing-shmem", "4.11"},
	{"event-unmap", "4.11"},
	{"sigbus", "4.14"},
	{"thread-id", "4.14"},
	{"minor-hugetlb", "5.13"},
	{"minor-shmem", "5.14"},
	{"exact-address", "5.18"},
	{"wp-hugetlb-shmem", "5.19"},
	{"wp-unpopulated", "6.4"},
	{"poison", "6.6"},
	{"wp-async", "6.7"},
	{"move", "6.8"},
}

// Has reports whether f has all of want.
func (f Features) Has(want Features) bool { return f&want == want }

// String lists the names, as "event-remove|exact-address"; a bit without a name
// is listed by its number.
func (f Features) String() string {
	return setString(uint64(f), func(bit int) string {
		if bit < len(featureNames) {
			return featureNames[bit].name
		}
		return ""
	})
}

// oldest returns the oldest kernel that has all of f.
func (f Features) oldest() string {
	newest := "4.3"
	for rest := uint64(f); rest != 0; rest &= rest - 1 {
		if bit := bits.TrailingZeros64(rest); bit < len(featureNames) {
			newest = featureNames[bit].oldest // the bits are in order of age
		}
	}
	if wp := FeatureFaultWP | FeatureWPHugetlbShmem | FeatureWPUnpopulated | FeatureWPAsync; f&wp != 0 {
		return sinceWP(newest)
	}
	return newest
}

// sinceWP is the oldest kernel of something that arms pages, given that of
// x86-64: arm64 could not before 6.10, and then all of it.
func sinceWP(amd64 string) string {
	if runtime.GOARCH == "arm64" {
		return "6.10"
	}
	return amd64
}

// setString joins the names of the bits of set; bits whose name is empty are
// given by number.
func setString(set uint64, name func(bit int) string) string {
	if set == 0 {
		return "none"
	}
	var b strings.Builder
	for rest := set; rest != 0; rest &= rest - 1 {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		bit := bits.TrailingZeros64(rest)
		if n := name(bit); n != "" {
			b.WriteString(n)
		} else {
			fmt.Fprintf(&b, "bit%d", bit)
		}
	}
	return b.String()
}
