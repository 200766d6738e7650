// Package testutil is what the tests of guestmm share: what a test needs of
// its host, deadlines for tests that park a worker, and leak checks.
//
// A test that needs something of the host asks for it by a Require function.
// Where the host lacks it the test is skipped, with the reason and its cure.
// It fails instead, so that a skip cannot rot unseen,
//
//   - where GUESTMM_REQUIRE names the need (a comma list of kvm, uffd,
//     busybox), which continuous integration sets to all of them;
//   - where the host should plainly have it and has not: a device that is
//     there and allowed but does not answer, a kernel recent enough for a
//     feature that it does not offer.
//
// A package whose tests start goroutines or open descriptors runs them by
// Main, which fails the run if one is left over.
package testutil
