// Command bench measures guestmm beside its peers, on the machine that it is
// run on.
//
//	go run ./bench [-quick] [-run REGEXP] [-json FILE]
//
// Each row is measured in rounds, and in each round by every contender in
// turn, A B A B: what changes on the machine meanwhile changes for all. A row
// shows medians over its rounds, and the ratio that it has a goal for. All rows
// are software alone: no vCPU runs.
//
// The contenders are guestmm in this process; gVisor's memory manager in a
// process of its own, which is built on demand and takes the Go module proxy
// the first time; and the kernel, by this process's own system calls. Rows about
// serving faults (uffd/...) have a C program that is compiled on the spot instead
// (see bench/floor): floor, whose server blocks, and floor-spin, whose server
// spins first. Whoever is missing is named as missing, with the reason.
//
// Before and after each round a control is timed on as many cores as the row
// uses: arithmetic, and loads that miss every cache. Rows in which it was slowed
// down are marked, and so are rows whose own rounds differ too much.
//
// The Go benchmarks beside this file ask the same questions of guestmm alone,
// in benchstat's format:
//
//	go test ./bench -bench . -count 10
package main
