//go:build linux && amd64

package kvm

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// hugeVA is two blocks of 2 MiB, which a guest's memory has as one leaf each until
// something splits them.
const hugeVA addr.GVA = 0x7f00_0000_0000

const (
	hugeBlocks = 2
	hugeFrames = 512
)

// hugeLooks are the pages that are looked at: ends and middles of blocks.
var hugeLooks = []int{0, 1, 255, 256, 510, 511, 512, 513, 700, 1023}

func hugePageAt(i int) addr.GVA { return hugeVA + addr.GVA(i)<<addr.PageShift }

// hugeFamily is spaces whose blocks a guest and Go code read and write, and change,
// against a naive copy.
type hugeFamily struct {
	t      *testing.T
	m      *guestmem.Memory
	p      *Platform
	cs     [2]*Context
	spaces []*guestmem.AddressSpace
	words  []map[int]uint64
	ro     []map[int]bool // pages that are read-only
	next   uint64
}

func (f *hugeFamily) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// read reads a page by each vCPU, so that each has the translation.
func (f *hugeFamily) read(i, page int) {
	f.t.Helper()
	for _, c := range f.cs {
		c.Regs = Regs{RIP: uint64(codeAt(0)), RDI: uint64(hugePageAt(page))}
		untilSyscall(f.t, f.p, f.spaces[i], c)
		if want := f.words[i][page]; c.Regs.RAX != want {
			f.t.Fatalf("the guest reads %d in page %d of space %d, want %d", c.Regs.RAX, page, i, want)
		}
	}
}

// write writes a page by a vCPU, or by Go code, or is refused.
func (f *hugeFamily) write(i, page, by int) {
	f.t.Helper()
	f.next++
	as, at := f.spaces[i], hugePageAt(page)
	if by == len(f.cs) {
		err := as.Store64(f.t.Context(), at, f.next)
		if refused := errors.Is(err, guestmem.ErrAccess); refused != f.ro[i][page] || !refused && err != nil {
			f.t.Fatalf("store to page %d: %v; read-only: %v", page, err, f.ro[i][page])
		}
	} else if c := f.cs[by]; f.ro[i][page] {
		c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: f.next}
		e, err := f.p.Run(f.t.Context(), as, c)
		if err != nil || e.Kind != ExitPageFault || e.Addr != at {
			f.t.Fatalf("write to read-only page %d: %v, %v", page, e, err)
		}
		if err := as.Fault(f.t.Context(), e.Addr, e.Access); !errors.Is(err, guestmem.ErrAccess) {
			f.t.Fatalf("write to read-only page %d: Fault = %v", page, err)
		}
	} else {
		c.Regs = Regs{RIP: uint64(codeAt(1)), RDI: uint64(at), RAX: f.next}
		untilSyscall(f.t, f.p, as, c)
	}
	if !f.ro[i][page] {
		f.words[i][page] = f.next
	}
}

// part draws a range: a block, or part of one.
func (f *hugeFamily) part() (first, n int) {
	b := rand.IntN(hugeBlocks) * hugeFrames
	if rand.IntN(2) == 0 {
		return b, hugeFrames
	}
	first = rand.IntN(hugeFrames)
	return b + first, 1 + rand.IntN(hugeFrames-first)
}

func (f *hugeFamily) fork(i int) {
	f.t.Helper()
	child, err := f.spaces[i].Fork()
	f.must(err)
	f.spaces = append(f.spaces, child)
	words, ro := make(map[int]uint64), make(map[int]bool)
	for k, v := range f.words[i] {
		words[k] = v
	}
	for k, v := range f.ro[i] {
		ro[k] = v
	}
	f.words, f.ro = append(f.words, words), append(f.ro, ro)
}

func (f *hugeFamily) close(i int) {
	f.t.Helper()
	f.must(f.spaces[i].Close())
	last := len(f.spaces) - 1
	f.spaces[i], f.words[i], f.ro[i] = f.spaces[last], f.words[last], f.ro[last]
	f.spaces, f.words, f.ro = f.spaces[:last], f.words[:last], f.ro[:last]
}

// change makes one of the changes that split, collapse, or alter leaves of 2 MiB.
func (f *hugeFamily) change(i int) {
	f.t.Helper()
	as := f.spaces[i]
	first, n := f.part()
	at, length := hugePageAt(first), uint64(n)<<addr.PageShift
	each := func(fn func(page int)) {
		for k := first; k < first+n; k++ {
			fn(k)
		}
	}
	switch rand.IntN(6) {
	case 0:
		f.must(as.Protect(at, length, guestmem.ProtRead))
		each(func(k int) { f.ro[i][k] = true })
	case 1, 2:
		f.must(as.Protect(at, length, guestmem.ProtRead|guestmem.ProtWrite))
		each(func(k int) { delete(f.ro[i], k) })
	case 3:
		f.must(as.Discard(at, length))
		each(func(k int) { delete(f.words[i], k) })
	case 4:
		_, err := as.Map(f.t.Context(), guestmem.MapOptions{Addr: at, Length: length, Prot: guestmem.ProtRead | guestmem.ProtWrite,
			Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed})
		f.must(err)
		f.must(as.Advise(f.t.Context(), hugeVA, hugeBlocks*hugeFrames<<addr.PageShift, guestmem.AdviceHugePage))
		each(func(k int) { delete(f.words[i], k); delete(f.ro[i], k) })
	case 5:
		f.must(as.Protect(hugeVA, hugeBlocks*hugeFrames<<addr.PageShift, guestmem.ProtRead|guestmem.ProtWrite))
		clear(f.ro[i])
		err := as.Advise(f.t.Context(), hugeVA, hugeBlocks*hugeFrames<<addr.PageShift, guestmem.AdviceCollapse)
		if err != nil && !errors.Is(err, guestmem.ErrInvalid) && !errors.Is(err, guestmem.ErrNoMemory) {
			f.t.Fatal(err)
		}
	}
}

// TestR8GuestsThroughHugeLeaves has vCPUs read and write through leaves of 2 MiB,
// across forks, splits, changes of permission and collapses: every page of every
// side is what was written there, and nothing is written that may not be.
func TestR8GuestsThroughHugeLeaves(t *testing.T) {
	rounds := 250
	if *soak {
		rounds = 25000
	}
	m, p := newGuestMemory(t, 48<<20, PlatformOptions{MaxVCPUs: 2})
	as := newGuestSpace(t, m, 1, progRead, progWrite)
	f := &hugeFamily{t: t, m: m, p: p, spaces: []*guestmem.AddressSpace{as}, words: []map[int]uint64{{}}, ro: []map[int]bool{{}}}
	for i := range f.cs {
		f.cs[i] = p.NewContext()
		defer f.cs[i].Close()
	}
	_, err := as.Map(t.Context(), guestmem.MapOptions{Addr: hugeVA, Length: hugeBlocks * hugeFrames << addr.PageShift,
		Prot: guestmem.ProtRead | guestmem.ProtWrite, Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed})
	f.must(err)
	f.must(as.Advise(t.Context(), hugeVA, hugeBlocks*hugeFrames<<addr.PageShift, guestmem.AdviceHugePage))
	for range rounds {
		i := rand.IntN(len(f.spaces))
		for range 2 {
			page := hugeLooks[rand.IntN(len(hugeLooks))]
			f.read(i, page)
			f.write(i, page, rand.IntN(3))
			f.read(i, page)
			f.read(rand.IntN(len(f.spaces)), page)
		}
		switch op := rand.IntN(10); {
		case op < 2 && len(f.spaces) < 4:
			f.fork(i)
		case op < 4 && len(f.spaces) > 1:
			f.close(rand.IntN(len(f.spaces)))
		case op < 7:
			// What both vCPUs have read through goes, in whole or in part.
			f.change(i)
			for _, page := range hugeLooks {
				f.read(i, page)
			}
		}
	}
	for i := range f.spaces {
		for _, page := range hugeLooks {
			f.read(i, page)
		}
	}
	f.must(m.Check())
	for len(f.spaces) > 0 {
		f.close(0)
	}
	s := m.Stats()
	t.Logf("%d installed, %d collapsed, %d split, %d reused, %d forks, %d pages copied", s.HugeInstalled, s.HugeCollapsed, s.HugeSplit, s.HugeReused, s.Forks, s.Copied)
	if s.HugeInstalled == 0 || s.HugeCollapsed == 0 || s.HugeSplit == 0 {
		t.Errorf("something never happened: %+v", s)
	}
}
