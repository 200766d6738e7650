//go:build linux && amd64

package kvm

import "sync/atomic"

// space is what a Platform knows of one address space.
type space struct {
	as         rooted        // immutable
	stops      atomic.Int32  // open Stops; stored under Platform.mu
	generation atomic.Uint64 // TLB generation that a vCPU must have loaded CR3 in
	refs       int           // Contexts that ran in it last, and open Stops; Platform.mu
}
