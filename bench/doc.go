// Command bench measures guestmm beside its peers, on the machine that it is
// run on.
//
//	go run ./bench [-quick] [-run REGEXP] [-json FILE] [-out DIR] [-v]
//	go run ./bench -list
//	go run ./bench -keep bench/results
//	go run ./bench -readme README.md
//
// Rows are grouped by question (read, beside-writer, fault, map, protect, fork, cow,
// uffd, snapshot, clone, restore, exit, size, count), each with what it measures and
// what it does not; -list shows them, and -run takes names of either. Each row is
// measured in rounds, and in each round by every contender in turn, A B A B: what
// changes on the machine meanwhile changes for all. A row shows medians over its
// rounds, their spread, and the ratio that it has a goal for. "software" rows have no
// vCPU.
//
// The contenders:
//
//	guestmm     in this process
//	gvisor      gVisor's memory manager, in a process of its own that is built on demand,
//	            its module downloaded the first time (bench/gvisorpeer)
//	kernel      Linux, by this process's own system calls, /dev/kvm's among them
//	floor       Linux from C: a program that is compiled on the spot (bench/floor). It
//	            forks, arms, and serves page faults by a server that blocks
//	floor-spin  the same, by a server that spins first
//	btree       an RWMutex, a google/btree of areas and a map of pages
//	pagemap     an RWMutex and a map of pages, no areas
//
// Whoever is missing (no compiler, no KVM, no userfaultfd, no network for gVisor's
// module) is named in the rows concerned, with the reason, and their goals count as
// not met; the rest runs. An interrupt prints what is finished, and a second one ends
// it at once.
//
// Before and after each round a control is timed on as many cores as the row
// uses: arithmetic, and loads that miss every cache. Rows in which it was slowed
// down are marked, and so are rows whose own rounds differ too much.
//
// A whole run (not -quick, unless -run asks for growth) then measures how costs grow
// with areas, memory, readers, address spaces and guests of a page-fault server, and
// names the simplest order that fits. A fit over few points and decades tells O(1) from
// O(n); it does not tell O(log n) from a cache that has become too small.
//
// What two cores cannot time is counted: the cache lines that two readers both write
// (package lines), and system calls, by tracing (bench/floor).
//
// -json has an array with one object for each goal: row, work (the line of the list of
// goals), ours, unit, spread, peers, ratio, against, op, goal, met, noisy, why. -out
// writes that and the table, the plots, and every round in the format of Go's
// benchmarks, for benchstat; -keep DIR does so below DIR as <date>-<cpu>, of whole runs
// alone. -readme FILE measures nothing: it has a page quote the last result that was
// kept, between its two lines for that, and a test holds that the README does. -v says
// who took how long over each row.
//
// What a missed goal's why says is of three kinds: a peer or a row that is missing; noise;
// or what forbids it, as far as the run's own figures and the goal account for that.
//
// The Go benchmarks beside this file ask the same questions of guestmm alone:
//
//	go test ./bench -bench . -count 10
package main
