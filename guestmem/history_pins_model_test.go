package guestmem

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// Histories of one address space with pins, snapshots, rollbacks, moves and children:
// what historyModel has no word for. Each operation is one step on all pages, here too.
//
// What a pin holds is a frame, and a page shows one at a time: as long as the pin's is
// the one, a device and the guest see each other's stores. A rollback or a discard puts
// another one in its place; from then on the pin's frame is the device's alone, with all
// pins of it.
const (
	pinHistoryPages  = 2
	pinHistoryPins   = 8
	pinHistoryCopies = 6 // snapshots, and children, each
)

type pinHistoryOp int

const (
	pinLoad pinHistoryOp = iota
	pinStore
	pinSwap
	pinTake
	pinRelease
	pinDeviceLoad
	pinDeviceStore
	pinSnapshot
	pinRollback
	pinFork
	pinDiscard
	pinMoveOut // to where lookups of these histories do not look
	pinMoveIn
	pinProtect
	pinChildLoad
	pinChildStore
	pinDiff // says nothing here; it runs beside the others
	nPinHistory
)

func (op pinHistoryOp) String() string {
	return [nPinHistory]string{"load", "store", "swap", "pin", "release", "device load", "device store", "snapshot", "rollback",
		"fork", "discard", "move out", "move in", "protect", "child's load", "child's store", "diff"}[op]
}

// pinHistoryIn is an operation as it is called.
type pinHistoryIn struct {
	op     pinHistoryOp
	page   int
	old    uint64 // swap
	word   uint64 // store, swap
	number int    // which pin, snapshot or child
	access Access // pin
	prot   Prot   // protect
}

// pinHistoryOut is how it has ended.
type pinHistoryOut struct {
	err     error // nil, or one of the named errors
	word    uint64
	swapped bool
	number  int // of what was made
}

// pinHistoryPage is a page in the model.
type pinHistoryPage struct {
	away     bool
	readOnly bool
	word     uint64
	frame    int // which frame it shows, of those that are told apart
}

type pinHistoryPin struct {
	held  bool
	frame int
	word  uint64
}

type pinHistoryMemory [pinHistoryPages]pinHistoryPage

// pinHistoryState is compared by ==.
type pinHistoryState struct {
	pages    pinHistoryMemory
	pins     [pinHistoryPins]pinHistoryPin
	frozen   [pinHistoryCopies]pinHistoryMemory
	children [pinHistoryCopies]pinHistoryMemory
	frames   int
}

// refuses is what an access meets.
func (p pinHistoryPage) refuses(access Access) error {
	switch {
	case p.away:
		return ErrNotMapped
	case p.readOnly && access == Write:
		return ErrAccess
	}
	return nil
}

// store is one to a frame, by whoever.
func (s *pinHistoryState) store(frame int, w uint64) {
	for i := range s.pages {
		if s.pages[i].frame == frame {
			s.pages[i].word = w
		}
	}
	for i := range s.pins {
		if s.pins[i].held && s.pins[i].frame == frame {
			s.pins[i].word = w
		}
	}
}

// replace has a page show another frame.
func (s *pinHistoryState) replace(i int) {
	s.frames++
	s.pages[i].frame = s.frames
}

// step does in to the state and returns what must come out of it.
func (s pinHistoryState) step(in pinHistoryIn, got pinHistoryOut) (pinHistoryState, pinHistoryOut) {
	var out pinHistoryOut
	p := &s.pages[in.page]
	switch in.op {
	case pinLoad:
		if out.err = p.refuses(Read); out.err == nil {
			out.word = p.word
		}
	case pinStore:
		if out.err = p.refuses(Write); out.err == nil {
			s.store(p.frame, in.word)
		}
	case pinSwap:
		if out.err = p.refuses(Write); out.err == nil && p.word == in.old {
			s.store(p.frame, in.word)
			out.swapped = true
		}
	case pinTake:
		if out.err = p.refuses(in.access); out.err == nil {
			out.number = got.number
			s.pins[got.number] = pinHistoryPin{true, p.frame, p.word}
		}
	case pinRelease:
		s.pins[in.number] = pinHistoryPin{}
	case pinDeviceLoad:
		out.word = s.pins[in.number].word
	case pinDeviceStore:
		s.store(s.pins[in.number].frame, in.word)
	case pinSnapshot:
		out.number = got.number
		s.frozen[got.number] = s.pages
	case pinRollback:
		s.pages = s.frozen[in.number]
		for i := range s.pages {
			s.replace(i)
		}
	case pinFork:
		out.number = got.number
		s.children[got.number] = s.pages
	case pinDiscard:
		if out.err = ErrNoSpace; !p.away {
			out.err, p.word = nil, 0
			s.replace(in.page)
		}
	case pinMoveOut, pinMoveIn:
		if out.err = ErrNotMapped; p.away == (in.op == pinMoveIn) {
			out.err, p.away = nil, !p.away
		}
	case pinProtect:
		if out.err = ErrNoSpace; !p.away {
			out.err, p.readOnly = nil, in.prot == r_
		}
	case pinChildLoad:
		q := s.children[in.number][in.page]
		if out.err = q.refuses(Read); out.err == nil {
			out.word = q.word
		}
	case pinChildStore:
		q := &s.children[in.number][in.page]
		if out.err = q.refuses(Write); out.err == nil {
			q.word = in.word
		}
	}
	return s, out
}

// pinHistoryModel begins with pages that are mapped and empty.
var pinHistoryModel = porcupine.Model{
	Init: func() any {
		s := pinHistoryState{frames: pinHistoryPages}
		for i := range s.pages {
			s.pages[i].frame = i + 1
		}
		return s
	},
	Step: func(state, input, output any) (bool, any) {
		next, want := state.(pinHistoryState).step(input.(pinHistoryIn), output.(pinHistoryOut))
		return want == output.(pinHistoryOut), next
	},
	DescribeOperation: func(input, output any) string {
		in, out := input.(pinHistoryIn), output.(pinHistoryOut)
		text := fmt.Sprintf("%v page %d", in.op, in.page)
		switch in.op {
		case pinLoad, pinChildLoad, pinDeviceLoad:
			text += fmt.Sprintf(" = %d", out.word)
		case pinStore, pinChildStore, pinDeviceStore:
			text += fmt.Sprintf(" := %d", in.word)
		case pinSwap:
			text += fmt.Sprintf(" %d for %d: %v", in.word, in.old, out.swapped)
		case pinTake:
			text += fmt.Sprintf(" for %v", in.access)
		case pinProtect:
			text += fmt.Sprintf(" %v", in.prot)
		}
		text += fmt.Sprintf(", number %d", in.number+out.number)
		if out.err != nil {
			text += ": " + out.err.Error()
		}
		return text
	},
}
