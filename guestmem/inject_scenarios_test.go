package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
)

// The scenarios of inject_test.go: between them, every operation that asks for
// something, on tables that are own, shared by two and shared by three.

const (
	injPrivate addr.GVA = 0x40000000 - 3*page // six pages over the border of two leaf tables
	injShared  addr.GVA = 0x80000000
	injFile    addr.GVA = 0x80400000
	injFar     addr.GVA = 0x7000_0000_0000 // tables of its own
	injHeap    addr.GVA = 0x500000
)

var injectScenarios = []struct {
	name string
	run  func(*injectWorld)
	// atLeast is how many passes a run must make: fewer, and it has lost its
	// point.
	atLeast int
}{
	{"single", (*injectWorld).single, 25},
	{"family", (*injectWorld).family, 100},
	{"borders", (*injectWorld).borders, 60},
	{"objects", (*injectWorld).objects, 25},
	{"pins", (*injectWorld).pinned, 50},
	{"moves", (*injectWorld).moves, 40},
	{"advice", (*injectWorld).advised, 20},
	{"monitored", (*injectWorld).monitored, 20},
}

// single is one address space by itself.
func (w *injectWorld) single() {
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.write(0, injPrivate, 4, 1)
	w.protect(0, injPrivate+page, 4, r_)
	w.protect(0, injPrivate+page, 2, ProtRead|ProtWrite)
	w.write(0, injPrivate+page, 2, 2)
	w.discard(0, injPrivate+2*page, 2)
	w.protect(0, injPrivate, 6, ProtRead|ProtWrite)
	w.write(0, injPrivate+2*page, 4, 3)
	w.mapPages(0, injPrivate+page, 2, MapOptions{Prot: rw, Flags: anon}) // over what is there
	w.mapPages(0, injPrivate+4*page, 1, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.write(0, injPrivate+4*page, 1, 4)
	w.mapPages(0, injFar, 3, MapOptions{Prot: rw, Flags: anon | MapPopulate})
	w.write(0, injFar+page, 1, 5)
	w.brk(0, 3)
	w.write(0, injHeap, 3, 6)
	w.compareAndSwap(0, injHeap, 6, 7)
	w.brk(0, 1)
	w.brk(0, 0)
	w.unmap(0, injPrivate+2*page, 2*page)
	w.unmap(0, injFar, page)
	w.unmap(0, 0, uint64(DefaultHighest))
	w.mapPages(0, injPrivate, 1, MapOptions{Prot: rw, Flags: anon})
	w.write(0, injPrivate, 1, 8)
	w.closeSpace(0)
}

// family is relatives that share tables, objects and pins.
func (w *injectWorld) family() {
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.write(0, injPrivate, 5, 1)
	w.mapPages(0, injShared, 2, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.writeShared(0, injShared, 1, 2)
	w.mapPages(0, injFile, 4, MapOptions{Prot: rw, Flags: MapPrivate, Object: w.object})
	w.populate(0, injFile, 2, Read)
	w.write(0, injFile+page, 1, 3)
	w.write(0, injFile+2*page, 1, 4) // a copy of a page that nobody has read
	w.fork(0)
	w.write(1, injPrivate, 1, 5)
	w.write(0, injPrivate+page, 1, 6)
	w.write(1, injPrivate+4*page, 2, 7)
	w.writeShared(1, injShared, 2, 8)
	w.write(1, injFile+page, 1, 9)
	w.pin(0, injPrivate+2*page, 1, Write)
	w.pin(0, injPrivate+3*page, 1, Read)
	w.fork(0) // copies two pinned pages
	w.protect(2, injPrivate+page, 4, r_)
	w.protect(2, injPrivate+page, 4, rw)
	w.write(2, injPrivate+page, 4, 11)
	w.fork(2)
	w.unmap(3, injPrivate+2*page, 2*page)
	w.discard(1, injPrivate+2*page, 2)
	w.fork(2)
	w.mapPages(4, injPrivate+page, 2, MapOptions{Prot: rw, Flags: anon})
	w.mapPages(2, injPrivate+4*page, 1, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.mapPages(2, injFar, 1, MapOptions{Prot: rw, Flags: anon | MapPopulate})
	w.write(2, injFar, 1, 12)
	w.brk(2, 3)
	w.write(2, injHeap, 3, 13)
	w.fork(2)
	w.brk(2, 1)
	w.compareAndSwap(5, injHeap, 13, 14)
	w.closeSpace(1)
	w.write(0, injPrivate, 5, 15)
	w.closeSpace(2)
	w.write(5, injPrivate, 4, 16)
	w.releasePins()
	w.unmap(5, 0, uint64(DefaultHighest))
	w.closeSpace(0)
}

// borders is memory that is placed and aligned like huge pages, over the borders
// of tables of every level, and changes that cut it off whole and in pieces
// while relatives share it.
func (w *injectWorld) borders() {
	const (
		huge  = hugeAlign / page
		leaf  = addr.GVA(3 << 30)        // of a page directory, too: where three levels meet
		upper = addr.GVA(0x80_0000_0000) // of a page-directory-pointer table: all four
	)
	w.newSpace()
	w.mapPages(0, upper-hugeAlign, 2*huge, MapOptions{Prot: rw, Flags: anon})
	w.mapPages(0, leaf-hugeAlign, 3*huge, MapOptions{Prot: rw, Flags: anon})
	w.write(0, upper-2*page, 4, 1)
	w.write(0, upper+hugeAlign-page, 1, 2)
	w.write(0, leaf-page, 2, 3)
	w.write(0, leaf+hugeAlign-page, 2, 4)
	w.fork(0)
	w.fork(1)
	w.protect(0, upper-hugeAlign, 2*huge, r_) // two leaf tables, each below tables of its own
	w.protect(0, upper-hugeAlign, 2*huge, rw)
	w.write(0, upper-page, 2, 5)
	w.unmap(1, upper, hugeAlign)         // a table as a whole
	w.unmap(1, leaf-2*page, 4*page)      // an end in each of two tables
	w.discard(2, leaf-hugeAlign, 2*huge) // tables that become empty, with areas above
	w.write(2, leaf-page, 2, 6)          // and are made again
	w.mapPages(2, upper-page, 2, MapOptions{Prot: rw, Flags: anon})
	w.unmap(2, leaf, 2*hugeAlign) // tables below what stays
	w.fork(2)
	w.unmap(3, 0, uint64(DefaultHighest))
	w.closeSpace(0)
	w.write(1, upper-2*page, 2, 7)
	w.write(2, upper+hugeAlign-page, 1, 8)
	w.closeSpace(2)
}

// objects is pages that come from elsewhere.
func (w *injectWorld) objects() {
	w.newSpace()
	w.mapPages(0, injFile, injFilePages, MapOptions{Prot: rw, Flags: MapPrivate, Object: w.object})
	w.write(0, injFile+page, 1, 1) // a copy at once
	w.populate(0, injFile, injFilePages, Read)
	w.mapPages(0, injShared, 4, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.fork(0)
	w.writeShared(1, injShared+page, 2, 2)
	w.writeShared(0, injShared, 2, 3)
	w.write(1, injFile+2*page, 2, 4)
	w.mapPages(0, injPrivate, injFilePages, MapOptions{Prot: r_, Flags: MapPrivate | MapPopulate, Object: w.object})
	w.mapPages(1, injShared, 2, MapOptions{Prot: rw, Flags: MapPrivate, Object: w.object})
	w.unmap(0, injFile+page, 2*page)
	w.unmap(0, injShared, 2*page)
	w.step("discard a file", func() error { return w.spaces[1].Discard(injFile, injFilePages*page) }, func() {
		for i := range injFilePages {
			w.model[1][injFile+addr.GVA(i)*page] = whole(fileByte(i))
		}
	})
	w.write(1, injFile, injFilePages, 5)
	w.closeSpace(1)
	w.populate(0, injFile+4*page, 2, Read)
	w.unmap(0, injFile, injFilePages*page)
	w.unmap(0, injShared, 4*page)
}

// pinned is what devices hold, across everything that takes away.
func (w *injectWorld) pinned() {
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.mapPages(0, injShared, 2, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.mapPages(0, injFile, 3, MapOptions{Prot: r_, Flags: MapPrivate, Object: w.object})
	w.write(0, injPrivate, 2, 1)
	w.pin(0, injPrivate, 4, Write) // over the border, half of it absent
	w.pin(0, injFile, 3, Read)     // read-only copies of an object's pages
	w.pin(0, injShared, 2, Write)
	w.fork(0)
	w.write(0, injPrivate, 4, 2)
	w.write(1, injPrivate, 4, 3)
	w.writeShared(1, injShared, 1, 4)
	w.pin(1, injPrivate+page, 2, Read) // unshares nothing more
	w.fork(1)
	w.pin(2, injFile+page, 1, Read)
	w.discard(0, injPrivate+page, 1) // what the device has is no longer mapped
	w.write(0, injPrivate+page, 1, 5)
	w.fork(0)
	w.unmap(0, injPrivate+2*page, page)
	w.protect(1, injPrivate, 4, r_)
	w.fork(1)
	w.closeSpace(1) // its pins outlive it
	w.fork(2)
	w.unmap(2, injPrivate, 6*page)
	w.releasePins()
	w.write(3, injPrivate, 2, 6)
}

// moves is pages that move, between tables that are own, shared and absent.
func (w *injectWorld) moves() {
	const target = injFar - 2*page // over a border of tables of all levels but the root
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.write(0, injPrivate, 6, 1)
	w.remap(0, injPrivate, 6, target, 6, 0) // to tables that are absent
	w.write(0, target, 6, 2)
	w.remap(0, target, 6, injPrivate, 6, RemapDontUnmap)
	w.write(0, target+page, 2, 3)
	w.fork(0)
	w.pin(0, injPrivate+page, 1, Write)
	w.remap(0, injPrivate, 3, injShared, 3, 0) // from shared tables, with a pin
	w.fork(0)
	w.remap(1, target, 3, injPrivate+page, 3, 0) // over what is there, in shared tables
	w.write(1, injPrivate, 5, 4)
	w.remap(1, injPrivate, 6, target, 3, 0) // cuts off
	w.remap(1, target, 3, injFar+page, 5, 0)
	w.fork(1)
	w.remap(2, injShared, 3, injShared+page*600, 3, 0)
	w.write(2, injShared+page*600, 3, 5)
	w.mapPages(3, injFile, 3, MapOptions{Prot: rw, Flags: MapShared | MapAnonymous})
	w.write(3, injFile, 3, 6)
	w.remap(3, injFile, 3, injHeap, 3, 0)
	w.releasePins()
	w.closeSpace(1)
	w.unmap(3, 0, uint64(DefaultHighest))
	w.unmap(0, 0, uint64(DefaultHighest))
}
