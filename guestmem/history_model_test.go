package guestmem

import (
	"errors"
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
)

// A concurrent history of a family of address spaces has an explanation if there
// is one order of its operations, each at an instant between its call and its
// return, in which the model gives the same answers.
//
// The model is of all pages of all spaces at once, and each operation is one
// step, those on a range and fork too. That is more than the sum of its pages
// would be: a history in which each page for itself is explained, but an unmap
// takes place at one instant for one page and at another for the next, or a
// child has one page from before a store and another from after the next one, is
// refused. The library keeps to the stronger model because whoever meets an
// entry that a change has taken something from goes to its area, finds it marked,
// and waits: nothing of a change shows before it publishes; and whoever has still
// found an entry as it was has ended when the change publishes (R1). Of a fork,
// the instant is the end of its grace period: stores of sections that walked the
// old root have ended, those of later ones are refused.
//
// One thing does show. A lookup that passed StartRead before the mark may find
// the entry swept, and install an empty page, which the second sweep takes away
// again (TestR1SecondSweepFindsLateInstalls). Others may find it meanwhile. So a
// page that is being unmapped, or mapped over, may be seen empty for a while
// before it is gone, each page by itself: withEmptied adds such a step for each. It may
// fall on the same instant as the change, and then says nothing. Under Linux the
// page would be seen as it was until it is gone.
//
// Copies of several pages are not one step: they leave their section between two
// pages, and are not in these histories.
const (
	historyPages  = 3
	historySpaces = 6
)

type historyOp int

const (
	histLoad historyOp = iota
	histStore
	histSwap // compare and swap
	histFault
	histMap
	histUnmap
	histProtect
	histDiscard
	histFork
	histEmpty // a part of an unmap, or of a map over something: see withEmptied
	nHist
)

func (op historyOp) String() string {
	return [nHist]string{"load", "store", "swap", "fault", "map", "unmap", "protect", "discard", "fork", "empty"}[op]
}

// historyIn is an operation as it is called.
type historyIn struct {
	op     historyOp
	space  int
	page   int
	n      int    // pages, of those that take a range
	prot   Prot   // map, protect
	access Access // fault
	old    uint64 // swap
	word   uint64 // store, swap
	change int    // map, unmap and its parts: which one it is, up to 63
}

// historyOut is how it has ended.
type historyOut struct {
	err     error // nil, or one of the named errors
	word    uint64
	swapped bool
	child   int
}

// named returns which of the errors that the model knows err is.
func named(err error) error {
	for _, known := range []error{ErrNotMapped, ErrAccess, ErrNoSpace, ErrNoMemory} {
		if errors.Is(err, known) {
			return known
		}
	}
	return err
}

// historyPage is a page of a space in the model.
type historyPage struct {
	mapped bool
	prot   Prot
	word   uint64
}

// historyState is the whole family. It is compared by ==.
type historyState struct {
	there  [historySpaces]bool
	spaces [historySpaces][historyPages]historyPage
	ended  uint64 // set of changes: what is left of their parts does nothing
}

func (p historyPage) refuses(access Access) error {
	switch {
	case !p.mapped:
		return ErrNotMapped
	case access == Read && p.prot == ProtNone, access == Write && p.prot&ProtWrite == 0:
		return ErrAccess
	}
	return nil
}

// step does in to the state and returns what must come out of it.
func (s historyState) step(in historyIn, got historyOut) (historyState, historyOut) {
	pages := &s.spaces[in.space]
	p := &pages[in.page]
	var out historyOut
	switch in.op {
	case histLoad:
		if out.err = p.refuses(Read); out.err == nil {
			out.word = p.word
		}
	case histStore:
		if out.err = p.refuses(Write); out.err == nil {
			p.word = in.word
		}
	case histSwap:
		if out.err = p.refuses(Write); out.err == nil && p.word == in.old {
			p.word, out.swapped = in.word, true
		}
	case histFault:
		out.err = p.refuses(in.access)
	case histMap:
		for i := range in.n {
			pages[in.page+i] = historyPage{mapped: true, prot: in.prot}
		}
		s.ended |= 1 << in.change
	case histUnmap:
		for i := range in.n {
			pages[in.page+i] = historyPage{}
		}
		s.ended |= 1 << in.change
	case histEmpty:
		if s.ended>>in.change&1 == 0 {
			p.word = 0
		}
	case histProtect:
		for i := range in.n {
			if !pages[in.page+i].mapped {
				out.err = ErrNoSpace // with what is below the hole changed
				break
			}
			pages[in.page+i].prot = in.prot
		}
	case histDiscard:
		for i := range in.n {
			q := &pages[in.page+i]
			if q.word = 0; !q.mapped {
				out.err = ErrNoSpace // with all that is mapped discarded
			}
		}
	case histFork:
		// Which number the child has is the test's to say.
		out.child = got.child
		s.there[out.child] = true
		s.spaces[out.child] = *pages
	}
	return s, out
}

// withEmptied adds, for each change that takes pages away, the steps that empty them.
func withEmptied(ops []porcupine.Operation) []porcupine.Operation {
	changes := 0
	for _, o := range slices.Clone(ops) {
		in := o.Input.(historyIn)
		if in.op == histMap || in.op == histUnmap {
			for i := range in.n {
				part := o
				part.ClientId = historyClients + i
				part.Input = historyIn{op: histEmpty, space: in.space, page: in.page + i, change: in.change}
				part.Output = historyOut{}
				ops = append(ops, part)
			}
			changes++
		}
	}
	if changes > 64 {
		panic("guestmem: more changes than a state can tell apart")
	}
	return ops
}

// historyModel begins with one space of which all pages are mapped and empty.
var historyModel = porcupine.Model{
	Init: func() any {
		var s historyState
		s.there[0] = true
		for i := range s.spaces[0] {
			s.spaces[0][i] = historyPage{mapped: true, prot: rw}
		}
		return s
	},
	Step: func(state, input, output any) (bool, any) {
		next, want := state.(historyState).step(input.(historyIn), output.(historyOut))
		return want == output.(historyOut), next
	},
	DescribeOperation: func(input, output any) string { return describeOp(input.(historyIn), output.(historyOut)) },
	DescribeState: func(state any) string {
		s, text := state.(historyState), ""
		for i, there := range s.there {
			if !there {
				continue
			}
			text += fmt.Sprintf("%d:", i)
			for _, p := range s.spaces[i] {
				if !p.mapped {
					text += " -"
					continue
				}
				text += fmt.Sprintf(" %v=%d", p.prot, p.word)
			}
			text += "  "
		}
		return text
	},
}

func describeOp(in historyIn, out historyOut) string {
	text := fmt.Sprintf("space %d: %v page %d", in.space, in.op, in.page)
	switch in.op {
	case histLoad:
		text += fmt.Sprintf(" = %d", out.word)
	case histStore:
		text += fmt.Sprintf(" := %d", in.word)
	case histSwap:
		text += fmt.Sprintf(" %d for %d: %v", in.word, in.old, out.swapped)
	case histFault:
		text += fmt.Sprintf(" for %v", in.access)
	case histMap, histProtect:
		text += fmt.Sprintf("+%d %v", in.n, in.prot)
	case histUnmap, histDiscard:
		text += fmt.Sprintf("+%d", in.n)
	case histFork:
		text = fmt.Sprintf("space %d: fork = space %d", in.space, out.child)
	}
	if out.err != nil {
		text += ": " + out.err.Error()
	}
	return text
}
