// Package peer runs a contender in a process of its own and asks it for rounds
// by the protocol of package workload.
package peer
