package report

import "fmt"

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
// of a contender in the same row, a row of our own, or nothing: then the
// figure itself is compared.
type Goal struct {
	Row     string
	Measure Measure
	Op      Op
	Limit   float64
	// Of is a contender's name, or empty.
	Of string
	// OfRow is a row of our own, or empty. With AtLeast the ratio is one of
	// throughputs, else one of times.
	OfRow string
}

// String reads "<= 0.60 x gvisor".
func (g Goal) String() string {
	switch {
	case g.Of != "":
		return fmt.Sprintf("%s %.2f x %s", g.Op, g.Limit, g.Of)
	case g.OfRow != "":
		return fmt.Sprintf("%s %.2f x own %s", g.Op, g.Limit, g.OfRow)
	default:
		return fmt.Sprintf("%s %s", g.Op, formatNs(g.Limit))
	}
}

// The contenders' names, as the report and its goals use them.
const (
	Ours   = "guestmm"
	GVisor = "gvisor"
	Kernel = "kernel"
	// The C program of bench/floor, with a server that blocks and one that spins.
	Floor     = "floor"
	FloorSpin = "floor-spin"
)

// Goals returns the goals of the project for the rows that exist so far.
func Goals() []Goal {
	goals := []Goal{
		{Row: "copy/size=8/handle", Op: AtMost, Limit: 0.6, Of: GVisor},
		{Row: "copy/size=8/pooled", Op: AtMost, Limit: 0.8, Of: GVisor},
		{Row: "copy/size=8/cores=2", Op: AtLeast, Limit: 1.9, OfRow: "copy/size=8/handle"},
		{Row: "copy/size=4096/cores=2", Op: AtLeast, Limit: 1.9, OfRow: "copy/size=4096/handle"},
		{Row: "random/areas=1000", Op: AtMost, Limit: 0.2, Of: GVisor},
		{Row: "fault/first-touch", Op: AtMost, Limit: 0.3, Of: Kernel},
	}
	for _, writer := range []string{"map", "protect", "fault", "fork"} {
		row := "random/beside=" + writer
		goals = append(goals,
			Goal{Row: row, Op: AtMost, Limit: 1.3, OfRow: "random/beside=none"},
			Goal{Row: row, Measure: Tail, Op: AtMost, Limit: 1000})
	}
	for _, others := range []string{"10", "1000", "30000"} {
		row := "map/others=" + others
		goals = append(goals,
			Goal{Row: row, Op: AtMost, Limit: 1, Of: GVisor},
			Goal{Row: row, Op: AtMost, Limit: 0.8, Of: Kernel})
	}
	for _, others := range []string{"10", "30000"} {
		goals = append(goals, Goal{Row: "protect/others=" + others, Op: AtMost, Limit: 1, Of: GVisor})
	}
	for _, row := range []string{
		"fork/touched=1MiB", "fork/touched=256MiB", "fork/touched=1GiB", "fork/touched=256MiB/scattered",
		"fork/areas=1", "fork/areas=1000", "fork/areas=30000",
	} {
		goals = append(goals, Goal{Row: row, Op: AtMost, Limit: 1500})
	}
	for _, mode := range []string{"missing", "missing-shmem", "minor", "wp", "zeropage", "arm=1GiB"} {
		goals = append(goals, Goal{Row: "uffd/" + mode, Op: AtMost, Limit: 1.1, Of: Floor})
	}
	// 0.95 times the throughput.
	goals = append(goals, Goal{Row: "uffd/bulk=64KiB", Op: AtMost, Limit: 1 / 0.95, Of: Floor})
	return append(goals,
		Goal{Row: "cow/sparse", Op: AtMost, Limit: 2000},
		Goal{Row: "cow/sparse/scattered", Op: AtMost, Limit: 4500})
}
