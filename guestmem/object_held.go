package guestmem

import "github.com/guestmm/guestmm/guestmem/addr"

// Pins that store. A device stores without a fault, so that nobody is told of it: a
// page of an object counts as changed for as long as a pin for writing holds it, and
// once more when that lets go.
//
//	pin                         who writes back (object_sync.go)
//	count the pin
//	mark the page               take the mark off
//	                            copy the page
//	the device stores           is a pin counted? mark it again
//	mark the page
//	count it no more
//
// A mark that the pin sets is taken off before the copy is made, or stays. If it was
// taken off, the pin had been counted before: either it still is when that is asked,
// or it has marked the page once more since, with its last store made (a mark taken
// off then is one of a page that is copied with that store).
//
// The frame's own mark (cow.Counts.IsPinned) would not do: it is one bit, which pins of
// two address spaces share, and it is set by pins that only read.

// heldPage is the page of an object that a pin for writing holds, and a reference to
// the object: its last pages are not written back before the device has ended. The zero
// one is that of a page whose stores nobody wants to know of.
type heldPage struct {
	object *Object
	index  uint64
}

// hold counts a pin.
//
// Preconditions: it has a reference to the object; the caller is in no section.
func (h heldPage) hold() {
	if h.object == nil {
		return
	}
	h.object.mu.Lock()
	defer h.object.mu.Unlock()
	if h.object.held == nil {
		h.object.held = make(map[uint64]int)
	}
	h.object.held[h.index]++
}

// letGo counts it no more, and gives up the reference.
//
// Preconditions: as Object.unref.
func (h heldPage) letGo() {
	if h.object == nil {
		return
	}
	h.object.mu.Lock()
	if n := h.object.held[h.index]; n > 1 {
		h.object.held[h.index] = n - 1
	} else {
		delete(h.object.held, h.index)
	}
	h.object.mu.Unlock()
	h.object.unref()
}

// noteStores marks the page as changed where frame f is still the object's. It returns
// false, with nothing done, if it is not, or is being taken out. (One that is being
// taken out, and may yet stay, has the mark if a pin is counted.)
func (h heldPage) noteStores(f addr.PFN) bool {
	if h.object == nil {
		return true
	}
	p := h.object.find(h.index)
	if p == nil {
		return false
	}
	for {
		switch v := p.Load(); {
		case v&^changed != uint64(f):
			return false
		case v&changed != 0 || p.CompareAndSwap(v, v|changed):
			return true
		}
	}
}

// markHeld marks those pages as changed that pins for writing hold.
func (o *Object) markHeld(pages []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.held) == 0 {
		return
	}
	for _, index := range pages {
		if o.held[index] > 0 {
			o.noteStore(index)
		}
	}
}
