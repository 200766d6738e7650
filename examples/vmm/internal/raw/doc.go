// Package raw makes and runs clones by system calls alone: the same that the
// library makes, in the order that a program written for this one purpose would have.
// The VMM's table of times has its figures beside the library's.
//
// It does not retry, undo or check more than it must: a baseline, not a binding.
package raw
