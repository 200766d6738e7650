//go:build !race

package guestmem

// racing says that the race detector watches.
const racing = false
