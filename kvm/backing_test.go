//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"golang.org/x/sys/unix"
)

// arena is a backing without guestmem: a memfd, mapped once for the slot and
// once for Go, and a free list. Its page tables are built by hand, so that the tests
// of this layer stand on nothing but KVM.
type arena struct {
	fd    int
	slot  []byte
	alias []byte
	base  addr.GPA

	mu     sync.Mutex
	next   addr.PFN
	free   []addr.PFN
	reused []addr.PFN
}

func newArena(t testing.TB, nPages int) *arena {
	t.Helper()
	fd, err := unix.MemfdCreate("kvm-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	a := &arena{fd: fd, next: 1}
	if err := unix.Ftruncate(fd, int64(nPages)*addr.PageSize); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*[]byte{&a.slot, &a.alias} {
		*m, err = unix.Mmap(fd, 0, nPages*addr.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Madvise(a.alias, unix.MADV_POPULATE_WRITE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Munmap(a.slot)
		unix.Munmap(a.alias)
		unix.Close(fd)
	})
	return a
}

func (a *arena) region() region {
	return region{base: a.base, size: uint64(len(a.slot)), slot: addr.HVA(addressOf(a.slot))}
}

func (a *arena) AllocSupervisor(n int) ([]addr.PFN, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []addr.PFN
	for range n {
		var f addr.PFN
		if k := len(a.free); k > 0 {
			f, a.free = a.free[k-1], a.free[:k-1]
		} else if uint64(a.next.GPA()-a.base) < uint64(len(a.alias)) {
			f = a.next
			a.next++
		} else {
			return nil, unix.ENOMEM
		}
		clear(a.SupervisorBytes(f))
		out = append(out, f)
	}
	return out, nil
}

func (a *arena) FreeSupervisor(f []addr.PFN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free = append(a.free, f...)
}

func (a *arena) SupervisorBytes(f addr.PFN) []byte {
	off := uint64(f.GPA() - a.base)
	return a.alias[off : off+addr.PageSize : off+addr.PageSize]
}

func (a *arena) ReuseTables(f []addr.PFN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reused = append(a.reused, f...)
	a.free = append(a.free, f...)
}

func (a *arena) frame(t testing.TB) addr.PFN {
	t.Helper()
	f, err := a.AllocSupervisor(1)
	if err != nil {
		t.Fatal(err)
	}
	return f[0]
}

// handSpace is an address space of hand-built tables.
type handSpace struct {
	a    *arena
	t    testing.TB
	mu   sync.Mutex
	root addr.PFN
}

func newHandSpace(t testing.TB, a *arena, p *Platform) *handSpace {
	h := &handSpace{a: a, t: t, root: a.frame(t)}
	putPTE(a.SupervisorBytes(h.root), upperIndex, p.upper.pdpt, pteP|pteW|pteA)
	return h
}

func (h *handSpace) Root() addr.PFN {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.root
}

func (h *handSpace) setRoot(f addr.PFN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.root = f
}

// slot returns the PTE's place, making tables on the way.
func (h *handSpace) slot(va addr.GVA) []byte {
	table := h.root
	for level := 3; level > 0; level-- {
		e := h.a.SupervisorBytes(table)[va>>(12+9*level)&511*8:]
		pte := binary.LittleEndian.Uint64(e)
		if pte&pteP == 0 {
			f := h.a.frame(h.t)
			putPTE(e, 0, f, pteP|pteW|pteU|pteA)
			table = f
			continue
		}
		table = addr.PFN(pte >> 12 & (1<<40 - 1))
	}
	return h.a.SupervisorBytes(table)[va>>12&511*8:]
}

// mapPage maps va to a frame, a fresh one if it is 0.
func (h *handSpace) mapPage(va addr.GVA, f addr.PFN, bits uint64) addr.PFN {
	if f == 0 {
		f = h.a.frame(h.t)
	}
	putPTE(h.slot(va), 0, f, pteP|pteU|pteA|pteD|bits)
	return f
}

// frameAt returns the frame that va is mapped to.
func (h *handSpace) frameAt(va addr.GVA) addr.PFN {
	return addr.PFN(binary.LittleEndian.Uint64(h.slot(va)) >> 12 & (1<<40 - 1))
}

// tables returns the frames of every table.
func (h *handSpace) tables() []addr.PFN {
	out := []addr.PFN{h.root}
	level := out
	for range 3 {
		var next []addr.PFN
		for _, f := range level {
			for i := range 512 {
				if f == h.root && i == upperIndex {
					continue
				}
				pte := binary.LittleEndian.Uint64(h.a.SupervisorBytes(f)[i*8:])
				if pte&pteP != 0 {
					next = append(next, addr.PFN(pte>>12&(1<<40-1)))
				}
			}
		}
		out, level = append(out, next...), next
	}
	return out
}

const (
	codeVA  addr.GVA = 0x400000
	dataVA  addr.GVA = 0x600000
	stackVA addr.GVA = 0x7fff0000
)

// newHandGuest maps code, one data page and one stack page.
func newHandGuest(t testing.TB, a *arena, p *Platform, code program) (*handSpace, *Context, []byte) {
	h := newHandSpace(t, a, p)
	cf := h.mapPage(codeVA, 0, 0)
	copy(a.SupervisorBytes(cf), code.code)
	df := h.mapPage(dataVA, 0, pteW|pteNX)
	h.mapPage(stackVA, 0, pteW|pteNX)
	c := p.NewContext()
	t.Cleanup(c.Close)
	c.Regs.RIP = uint64(codeVA)
	c.Regs.RSP = uint64(stackVA + addr.PageSize)
	return h, c, a.SupervisorBytes(df)
}

// requireKVM opens the device for one test.
func requireKVM(t testing.TB) *System {
	t.Helper()
	testutil.RequireKVM(t)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newHandPlatform(t testing.TB, nPages int, o PlatformOptions) (*arena, *Platform) {
	t.Helper()
	s := requireKVM(t)
	a := newArena(t, nPages)
	p, err := newPlatform(s, a, a.region(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return a, p
}
