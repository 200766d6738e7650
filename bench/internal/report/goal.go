package report

import (
	"fmt"
	"strings"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// Op is how a ratio is compared with its goal.
type Op string

const (
	AtMost  Op = "<="
	AtLeast Op = ">="
)

func (o Op) holds(ratio, goal float64) bool {
	if o == AtLeast {
		return ratio >= goal
	}
	return ratio <= goal
}

// Measure names the number of a figure that a goal is about.
type Measure int

const (
	Mean Measure = iota
	Tail         // the 99.9th percentile
)

// A Goal is what a row has to reach. What the ratio is taken of is the figure
// of a contender in the same row, rows of our own, or nothing: then the figure
// itself is compared.
type Goal struct {
	// Work is the line of the project's list of goals that this is part of.
	Work    Work
	Row     string
	Measure Measure
	Op      Op
	Limit   float64
	// Of is a contender's name, or empty. With AtLeast the ratio is one of
	// throughputs, else one of times.
	Of string
	// OfRows are rows of our own, whose figures are added up; or none. AtLeast as
	// above.
	OfRows []string
	// Floor is a row whose same measure shows, where the goal is missed, how much
	// of it this machine takes by itself; or empty.
	Floor string
	// Why says what forbids the goal where it is missed, beside the figures that the
	// run itself has for that; or is empty.
	Why string
}

// String reads "<= 0.60 x gvisor".
func (g Goal) String() string {
	switch {
	case g.Of != "":
		return fmt.Sprintf("%s %.2f x %s", g.Op, g.Limit, g.Of)
	case len(g.OfRows) > 0:
		return fmt.Sprintf("%s %.2f x own %s", g.Op, g.Limit, strings.Join(g.OfRows, " + "))
	default:
		return fmt.Sprintf("%s %s", g.Op, g.format(g.Limit))
	}
}

func (g Goal) format(v float64) string {
	if row, err := workload.Find(g.Row); err == nil {
		return format(v, row.Unit())
	}
	return format(v, "ns/op")
}

// The contenders' names, as the report and its goals use them.
const (
	Ours   = "guestmm"
	GVisor = "gvisor"
	Kernel = "kernel"
	// The C program of bench/floor, with a server that blocks and one that spins.
	Floor     = "floor"
	FloorSpin = "floor-spin"
	// Package plain's.
	BTree   = "btree"
	PageMap = "pagemap"
)

// Contenders returns all names, ours first, in the order of the report.
func Contenders() []string {
	return []string{Ours, GVisor, Kernel, Floor, FloorSpin, BTree, PageMap}
}

// Work is a line of the list of goals.
type Work string

// The list, in its order.
const (
	CopySmall     Work = "copy 8 B, page present, one core: owned handle / pooled"
	CopyTwoCores  Work = "same, two cores, own pages, throughput"
	RandomReads   Work = "random 8 B reads over 1 000 areas"
	BesideWriter  Work = "random reads beside a writer looping map/unmap, protect, fault or fork"
	FirstTouch    Work = "first touch, recycled frame, zeroed, working set <= 16 MiB"
	MapUnmap      Work = "map+unmap pair, 10 / 1 000 / 30 000 other areas, accessible"
	ProtectPair   Work = "protect split + merge pair, touched"
	ForkSoftware  Work = "fork, software: 256 MiB; scattered; 30 000 areas"
	ForkVCPU      Work = "fork of a running vCPU"
	COWWrite      Work = "COW write, one per 2 MiB, software: frames contiguous / scattered"
	UffdRoundTrip Work = "userfaultfd round trip, each mode, Go server"
	BulkInstall   Work = "bulk install"
	PauseFirst    Work = "live snapshot pause, first"
	PauseAgain    Work = "live snapshot pause, again with 1 % dirtied"
	CloneExit     Work = "clone of a template to its first guest exit"
	Sizes         Work = "heap per area / table bytes per mapped page, dense"
)

// Works returns the whole list.
func Works() []Work {
	return []Work{
		CopySmall, CopyTwoCores, RandomReads, BesideWriter, FirstTouch, MapUnmap, ProtectPair, ForkSoftware,
		ForkVCPU, COWWrite, UffdRoundTrip, BulkInstall, PauseFirst, PauseAgain, CloneExit, Sizes,
	}
}

// What forbids a goal, as far as it is known. Each is said only where the goal is missed.
const (
	whyRandom = "the bytes read and the leaf that leads to them are two misses of the first cache, which a plain map " +
		"of pages has too: see the column pagemap, which walks nothing and counts nobody, and whose figure alone is about the goal; " +
		"hottest are Table.Translate, Handle.Enter and AddressSpace.readHit"
	whySparse = "a table of 512 leaves is copied and each of its frames gains a reference, which is 128 locked additions " +
		"where the frames follow each other, and no fewer can be exact; hottest are Counts.ShareRun, Table.copyLeaves and Memory.copyFrame"
)

// By writer. No change ends before it has looked at every reader's slot.
var whyBeside = map[string]string{
	"fault": "the writer zeroes a frame in each fault, and its 4 MiB go through the cache that the reader's pages are in; " +
		"hottest are Table.Translate, Handle.Enter and AddressSpace.readHit",
	"fork": "each fork loads the reader's slot and stores the root of its table, and leads to a fresh root: three cache lines that the " +
		"reader has to fetch from the other core once for each fork, of which there is one in the time of a few reads; " +
		"hottest are Table.Translate, Handle.Enter and AddressSpace.readHit",
}

// Goals returns the goals of the project, in the order of Works.
func Goals() []Goal {
	goals := []Goal{
		{Work: CopySmall, Row: "copy/size=8/handle", Op: AtMost, Limit: 0.6, Of: GVisor},
		{Work: CopySmall, Row: "copy/size=8/pooled", Op: AtMost, Limit: 0.8, Of: GVisor},
		{Work: CopyTwoCores, Row: "copy/size=8/cores=2", Op: AtLeast, Limit: 1.9, OfRows: []string{"copy/size=8/handle"}},
		{Work: CopyTwoCores, Row: "copy/size=4096/cores=2", Op: AtLeast, Limit: 1.9, OfRows: []string{"copy/size=4096/handle"}},
		{Work: RandomReads, Row: "random/areas=1000", Op: AtMost, Limit: 0.2, Of: GVisor, Why: whyRandom},
	}
	const alone = "random/beside=none"
	for _, writer := range []string{"map", "protect", "fault", "fork"} {
		row := "random/beside=" + writer
		goals = append(goals,
			Goal{Work: BesideWriter, Row: row, Op: AtMost, Limit: 1.3, OfRows: []string{alone}, Why: whyBeside[writer]},
			Goal{Work: BesideWriter, Row: row, Measure: Tail, Op: AtMost, Limit: 1000, Floor: alone})
	}
	goals = append(goals, Goal{Work: FirstTouch, Row: "fault/first-touch", Op: AtMost, Limit: 0.3, Of: Kernel})
	for _, others := range []string{"10", "1000", "30000"} {
		row := "map/others=" + others
		goals = append(goals,
			Goal{Work: MapUnmap, Row: row, Op: AtMost, Limit: 1, Of: GVisor},
			Goal{Work: MapUnmap, Row: row, Op: AtMost, Limit: 0.8, Of: Kernel})
	}
	for _, others := range []string{"10", "30000"} {
		goals = append(goals, Goal{Work: ProtectPair, Row: "protect/others=" + others, Op: AtMost, Limit: 1, Of: GVisor})
	}
	for _, row := range []string{
		"fork/touched=1MiB", "fork/touched=256MiB", "fork/touched=1GiB", "fork/touched=256MiB/scattered",
		"fork/areas=1", "fork/areas=1000", "fork/areas=30000",
	} {
		goals = append(goals, Goal{Work: ForkSoftware, Row: row, Op: AtMost, Limit: 1500})
	}
	goals = append(goals,
		// The new root costs what a copy on write does: a frame, and 4 KiB into it.
		Goal{Work: ForkVCPU, Row: "fork/vcpu", Op: AtMost, Limit: 1, OfRows: []string{"fork/touched=1MiB", "exit/kick", "cow/dense"},
			Why: "it also closes the vCPU's gate and opens it again, and each fork is timed by itself, cold, where those it is held against are timed in rounds"},
		Goal{Work: COWWrite, Row: "cow/sparse", Op: AtMost, Limit: 2000, Why: whySparse},
		Goal{Work: COWWrite, Row: "cow/sparse/scattered", Op: AtMost, Limit: 4500})
	for _, mode := range []string{"missing", "missing-shmem", "minor", "wp", "zeropage"} {
		goals = append(goals, Goal{Work: UffdRoundTrip, Row: "uffd/" + mode, Op: AtMost, Limit: 1.1, Of: Floor})
	}
	const first = "snapshot/pause=first"
	return append(goals,
		Goal{Work: BulkInstall, Row: "uffd/bulk=64KiB", Op: AtLeast, Limit: 0.95, Of: Floor},
		Goal{Work: PauseFirst, Row: first, Op: AtMost, Limit: 1.1, Of: Floor},
		Goal{Work: PauseAgain, Row: "snapshot/pause=again", Op: AtMost, Limit: 0.05, OfRows: []string{first},
			Why: "the first is armed on all cores at once, in calls of 32 MiB; this takes a call for each of 400 runs"},
		Goal{Work: PauseAgain, Row: "snapshot/pause=again/scattered", Op: AtMost, Limit: 1.1, Of: Floor,
			Why: "it is a call for each page: what a system call costs more from Go than from C is in each"},
		Goal{Work: CloneExit, Row: "clone/first-exit", Op: AtMost, Limit: 1.3, Of: Kernel},
		Goal{Work: Sizes, Row: "heap/areas=30000", Op: AtMost, Limit: 140},
		Goal{Work: Sizes, Row: "table/dense=256MiB", Op: AtMost, Limit: 8.2})
}
