//go:build race

package guestmem

// racing says that the race detector watches, whose shadow of the heap is several
// times the heap's size.
const racing = true
