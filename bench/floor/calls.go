package floor

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// System calls are counted by the C program, which traces another from its
// beginning to its end: our own binary with arguments that only Traced knows, or
// itself. What each operation takes is the difference between a run of many and a
// run of more of them.

const (
	tracedUFFD  = "uffd"
	tracedFault = "fault"

	// tracedOps are in the greater run above those in the lesser.
	tracedOps, tracedFew = 4096, 512
)

// Traced does what is being counted, if that is what the arguments say.
func Traced(args []string) (isTraced bool, err error) {
	if len(args) != 4 || args[0] != "traced" {
		return false, nil
	}
	n, err := strconv.Atoi(args[3])
	if err != nil {
		return true, err
	}
	return true, traced(args[1], args[2], n)
}

// ownCalls counts those of our own for one operation.
func (p *Program) ownCalls(what string) (workload.Figure, error) {
	if p.Self == "" {
		return workload.Figure{}, errors.New("system calls are counted by the command alone")
	}
	return p.callsPer(func(n string) []string { return []string{p.Self, "traced", what, p.path, n} })
}

func (p *Program) callsPer(command func(n string) []string) (workload.Figure, error) {
	var counts [2]float64
	for i := range counts {
		fig, err := p.run(append([]string{"calls"}, command(fmt.Sprint(tracedFew+i*tracedOps))...)...)
		if err != nil {
			return workload.Figure{}, err
		}
		counts[i] = fig.PerOp
	}
	// What a runtime does by itself may make the lesser run the greater.
	return workload.Figure{PerOp: max(0, counts[1]-counts[0]) / tracedOps, Ops: tracedOps}, nil
}
