// Package inject makes calls fail that hardly ever do, for tests of what comes
// after.
//
// Each place where the library asks for something that may be refused (a system
// call, an ioctl of KVM, frames of the pool) has a Point of its own, and asks it
// first. Outside of tests a point is one load of a word that nobody writes, beside
// a call that costs a hundred times as much.
//
//	        the call's wrapper               a test
//	p.Err() == nil? ── yes ── the call       Plan: which passes fail, and how
//	        └─ no: that error, no call       Run: arms it while an operation runs
//
// A Run counts the passes of all points that its plan is about, in the order in
// which they happen, so that a scenario can be run again and again with the
// next pass failing each time, until a run reaches none.
//
// The package keeps, over all runs of a process, which points have failed, so
// that a test can ask whether a point was added that no scenario reaches.
//
// Locks: a Run's own mutex, innermost. One Run is armed at a time; tests that
// arm one are not parallel. It is not for calls of the embedder (views, sources
// of objects): tests wrap those, and may give them points of their own.
package inject
