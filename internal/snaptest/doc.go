// Package snaptest makes snapshot files for tests by the book, docs/snapfile.md, and
// not by the code that it tests: right ones, and ones that say nonsense under checksums
// that are right, as who means harm would.
//
// A [File] is what a file says, field by field. [File.Bytes] lays it out and sums it up;
// what a field says is never corrected. [Nonsense] is a list of changes each of which
// makes a file one that nobody should take, or whose data nobody should be given.
package snaptest
