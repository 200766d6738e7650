package epoch

import (
	"bytes"
	"runtime"
	"strconv"
	"sync"

	"github.com/guestmm/guestmm/internal/invariants"
)

// open has the goroutines that are in a section, under invariants only.
var open sync.Map // goroutine id (uint64) -> struct{}

func goroutineID() uint64 {
	var buf [64]byte
	fields := bytes.Fields(buf[:runtime.Stack(buf[:], false)])
	id, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		panic("epoch: cannot tell the goroutine: " + err.Error())
	}
	return id
}

func enterSection() {
	if _, nested := open.LoadOrStore(goroutineID(), struct{}{}); nested {
		panic("epoch: read sections nest")
	}
}

func exitSection() {
	if _, ok := open.LoadAndDelete(goroutineID()); !ok {
		panic("epoch: a read section ends on another goroutine than it began on")
	}
}

// AssertOutside panics, under invariants, if the calling goroutine is in a
// read section: op may block, allocate, call out or wait for the section.
func AssertOutside(op string) {
	if !invariants.Enabled {
		return
	}
	if _, in := open.Load(goroutineID()); in {
		panic("epoch: " + op + " inside a read section")
	}
}

// AssertInside panics, under invariants, if the calling goroutine is in no
// read section: op follows pointers that only a section keeps alive.
func AssertInside(op string) {
	if !invariants.Enabled {
		return
	}
	if _, in := open.Load(goroutineID()); !in {
		panic("epoch: " + op + " outside a read section")
	}
}
