//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Guests and host race in one address space, and the guests judge.
//
// Each data page has a state word in a page of states: a generation over two
// bits that say what the page allows. The host lowers the bits to closed, makes
// its change, writes the new state word into the page itself, and only then
// publishes it. A guest that finds the same state before and after an access
// knows what the access must have met:
//
//	guest                               host
//	s = state                           state = closed
//	read page, write page               unmap, map, protect, discard, fork
//	if state is still s:                page = s'
//	  all of it was under s             state = s'
//
// An access that faults for good continues at the label in R15, where the guest
// judges the refusal by the same rule. Beside that each guest sends the other
// rising numbers through two pages, data first, which forks share and
// protections close under it.

// What the two low bits of a state word say of a page.
const (
	stateClosed = 0 // changing; nothing can be said
	stateNone   = 1 // every access must fault
	stateRead   = 2 // every write must fault
	stateWrite  = 3 // none may
)

// raceVerdicts are what the guest leaves in RBX before its ud2.
var raceVerdicts = []string{
	1: "a read of what is unmapped or without permission did not fault",
	2: "a page has not what was written to it before its state was published",
	3: "a write to what is read-only did not fault",
	4: "a write to the page is lost",
	5: "a read of what is readable was refused",
	6: "a write to what is writable was refused",
	7: "the sibling's flag came without its data",
	8: "the sibling's flag goes back",
}

// progRace is for ever a round over racePages pages from RDI, whose states are
// at RSI; the guest writes at offset R8 of each, to R9 (data and flag page), and
// reads its sibling's at R10. It counts judgements of accesses in R14, of
// refused reads in R11, of refused writes in RSP, of messages in R12; R13 is the last
// flag that it saw.
var progRace = program{`
	1: inc %ebp
	and $7, %ebp
	mov %rbp, %rcx
	shl $12, %rcx
	add %rdi, %rcx
	mov (%rsi,%rbp,8), %rax
	lea 3f(%rip), %r15
	mov (%rcx), %rdx
	mov (%rsi,%rbp,8), %rbx
	cmp %rax, %rbx
	jne 5f
	and $3, %ebx
	jz 5f
	cmp $1, %ebx
	mov $1, %ebx
	je 9f
	cmp %rax, %rdx
	mov $2, %ebx
	jb 9f
	lea 4f(%rip), %r15
	mov %rax, (%rcx,%r8)
	mov (%rcx,%r8), %rdx
	mov (%rsi,%rbp,8), %rbx
	cmp %rax, %rbx
	jne 5f
	and $3, %ebx
	cmp $3, %ebx
	mov $3, %ebx
	jne 9f
	cmp %rax, %rdx
	mov $4, %ebx
	jne 9f
	inc %r14
	jmp 5f
	3: mov (%rsi,%rbp,8), %rbx
	cmp %rax, %rbx
	jne 5f
	and $3, %ebx
	cmp $1, %ebx
	mov $5, %ebx
	ja 9f
	inc %r11
	jmp 5f
	4: mov (%rsi,%rbp,8), %rbx
	cmp %rax, %rbx
	jne 5f
	and $3, %ebx
	cmp $3, %ebx
	mov $6, %ebx
	je 9f
	inc %rsp
	5: xor %r15d, %r15d
	inc %r12
	mov %r12, (%r9)
	mov %r12, 4096(%r9)
	mov 4096(%r10), %rdx
	mov (%r10), %rax
	cmp %rdx, %rax
	mov $7, %ebx
	jb 9f
	cmp %r13, %rdx
	mov $8, %ebx
	jb 9f
	mov %rdx, %r13
	jmp 1b
	9: ud2
`, "\xff\xc5\x83\xe5\x07\x48\x89\xe9\x48\xc1\xe1\x0c\x48\x01\xf9\x48\x8b\x04\xee\x4c\x8d\x3d\x69\x00\x00\x00\x48\x8b" +
	"\x11\x48\x8b\x1c\xee\x48\x39\xc3\x0f\x85\x8d\x00\x00\x00\x83\xe3\x03\x0f\x84\x84\x00\x00\x00\x83\xfb\x01\xbb\x01" +
	"\x00\x00\x00\x0f\x84\xac\x00\x00\x00\x48\x39\xc2\xbb\x02\x00\x00\x00\x0f\x82\x9e\x00\x00\x00\x4c\x8d\x3d\x48\x00" +
	"\x00\x00\x4a\x89\x04\x01\x4a\x8b\x14\x01\x48\x8b\x1c\xee\x48\x39\xc3\x75\x50\x83\xe3\x03\x83\xfb\x03\xbb\x03\x00" +
	"\x00\x00\x75\x79\x48\x39\xc2\xbb\x04\x00\x00\x00\x75\x6f\x49\xff\xc6\xeb\x34\x48\x8b\x1c\xee\x48\x39\xc3\x75\x2b" +
	"\x83\xe3\x03\x83\xfb\x01\xbb\x05\x00\x00\x00\x77\x54\x49\xff\xc3\xeb\x19\x48\x8b\x1c\xee\x48\x39\xc3\x75\x10\x83" +
	"\xe3\x03\x83\xfb\x03\xbb\x06\x00\x00\x00\x74\x39\x48\xff\xc4\x45\x31\xff\x49\xff\xc4\x4d\x89\x21\x4d\x89\xa1\x00" +
	"\x10\x00\x00\x49\x8b\x92\x00\x10\x00\x00\x49\x8b\x02\x48\x39\xd0\xbb\x07\x00\x00\x00\x72\x12\x4c\x39\xea\xbb\x08" +
	"\x00\x00\x00\x72\x08\x49\x89\xd5\xe9\x13\xff\xff\xff\x0f\x0b"}

const (
	racePages  = 8 // the and $7 of progRace
	raceStates = racePages
	raceMailVA = gDataVA + 1<<30 // a page directory of its own
)

func TestRaceProgramBytesMatchTheirSource(t *testing.T) {
	if got := assemble(t, progRace.source); !bytes.Equal(got, progRace.bytes()) {
		t.Errorf("bytes %x, source %x", progRace.code, got)
	}
}

// racePage is what the host knows of a data page.
type racePage struct {
	mu    sync.Mutex
	state uint64 // as published; guarded by mu
}

type races struct {
	t     testing.TB
	ctx   context.Context
	p     *Platform
	as    *guestmem.AddressSpace
	pages [racePages]racePage
	mail  sync.Mutex // one change of the mail pages at a time

	done     atomic.Bool
	ops      [nRaceOps]atomic.Uint64
	resolved atomic.Uint64
	refused  atomic.Uint64
}

func (r *races) fail(format string, args ...any) {
	r.t.Helper()
	r.done.Store(true)
	r.t.Errorf(format, args...)
}

func (r *races) must(what string, err error) {
	if err != nil {
		r.fail("%s: %v", what, err)
	}
}

// guest runs one guest until it is kicked at the end.
func (r *races) guest(c *Context) {
	for {
		e, err := r.p.Run(r.ctx, r.as, c)
		if err != nil {
			r.fail("%v (registers %+x)", err, c.Regs)
			return
		}
		switch {
		case e.Kind == ExitKicked && r.done.Load():
			return
		case e.Kind == ExitPageFault:
			if !r.fault(e, c) {
				return
			}
		case e.Kind == ExitException && e.Vector == vectorUD && c.Regs.RBX < uint64(len(raceVerdicts)):
			r.fail("guest: %s (registers %+x)", raceVerdicts[c.Regs.RBX], c.Regs)
			return
		default:
			r.fail("%v (registers %+x)", e, c.Regs)
			return
		}
	}
}

// fault resolves a fault; the guest hears of one that cannot be, if it asked to.
func (r *races) fault(e Exit, c *Context) bool {
	err := r.as.Fault(r.ctx, e.Addr, e.Access)
	switch {
	case err == nil:
		r.resolved.Add(1)
		return true
	case !errors.Is(err, guestmem.ErrNotMapped) && !errors.Is(err, guestmem.ErrAccess):
	case c.Regs.R15 != 0 && uint64(e.Addr.RoundDown()) == c.Regs.RCX:
		r.refused.Add(1)
		c.Regs.RIP = c.Regs.R15
		return true
	case c.Regs.R15 == 0 && e.Access == guestmem.Write && errors.Is(err, guestmem.ErrAccess):
		return !r.done.Load() // a mail page, read-only for a moment: again
	}
	r.fail("%v: %v (registers %+x)", e, err, c.Regs)
	return false
}

// publish says that page i is in a new generation that allows what bits say.
func (r *races) publish(i int, bits uint64) {
	pg := &r.pages[i]
	pg.state = (pg.state>>2+1)<<2 | bits
	r.must("publish", r.as.Store64(r.ctx, addr.GVA(dataAt(raceStates))+addr.GVA(8*i), pg.state))
}

// write stores what the next publish of page i with these bits will say.
func (r *races) write(i int, bits uint64) {
	next := (r.pages[i].state>>2+1)<<2 | bits
	var err error
	if next&4 == 0 {
		err = r.as.Store64(r.ctx, addr.GVA(dataAt(i)), next)
	} else {
		_, err = r.as.WriteAt(r.ctx, binary.LittleEndian.AppendUint64(nil, next), addr.GVA(dataAt(i)))
	}
	r.must("write", err)
}

func (r *races) mapPage(i int) {
	_, err := r.as.Map(r.ctx, guestmem.MapOptions{
		Addr: addr.GVA(dataAt(i)), Length: addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed,
	})
	r.must("map", err)
}

func (r *races) protect(gva addr.GVA, n uint64, prot guestmem.Prot) {
	r.must("protect", r.as.Protect(gva, n*addr.PageSize, prot))
}

const (
	raceRewrite = iota // fork, break, say so: without closing the page
	raceProtectRead
	raceProtectNone
	raceUnmap
	raceMapOver
	raceDiscard
	raceFork
	raceMail
	nRaceOps
)

// host changes pages at random until the end.
func (r *races) host(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	var children []func()
	for !r.done.Load() {
		i, op := rng.IntN(racePages), rng.IntN(nRaceOps)
		r.ops[op].Add(1)
		if op == raceMail {
			r.closeMail(rng)
		} else if check := r.change(i, op, rng); check != nil {
			children = append(children, check)
		}
		if len(children) > 2 {
			children[0]()
			children = children[1:]
		}
		time.Sleep(time.Duration(rng.IntN(150)) * time.Microsecond)
	}
	for _, check := range children {
		check()
	}
}

// change makes one change of page i; it may return what is to be called of a
// child later.
func (r *races) change(i, op int, rng *rand.Rand) (child func()) {
	pg, at := &r.pages[i], addr.GVA(dataAt(i))
	pg.mu.Lock()
	defer pg.mu.Unlock()
	before := pg.state & 3
	switch {
	case op == raceFork:
		return r.fork(i, rng)
	case op == raceRewrite && before == stateWrite:
		child = r.fork(i, rng)
		r.write(i, stateWrite)
		r.publish(i, stateWrite)
		return child
	}
	r.publish(i, stateClosed)
	if op == raceUnmap && before != stateNone {
		r.must("unmap", r.as.Unmap(at, addr.PageSize))
		r.publish(i, stateNone)
		return nil
	}
	if before == stateNone || op == raceMapOver {
		r.mapPage(i)
	} else if before == stateRead {
		r.protect(at, 1, guestmem.ProtRead|guestmem.ProtWrite)
	}
	bits := uint64(stateWrite)
	switch op {
	case raceProtectRead:
		bits = stateRead
	case raceProtectNone:
		bits = stateNone
	case raceDiscard:
		r.must("discard", r.as.Discard(at, addr.PageSize))
	}
	if rng.IntN(2) == 0 {
		child = r.fork(i, rng)
	}
	r.write(i, bits)
	switch bits {
	case stateRead:
		r.protect(at, 1, guestmem.ProtRead)
	case stateNone:
		r.protect(at, 1, guestmem.ProtNone)
	}
	r.publish(i, bits)
	return child
}

// closeMail takes the guests' permission to send for a moment.
func (r *races) closeMail(rng *rand.Rand) {
	r.mail.Lock()
	defer r.mail.Unlock()
	first := rng.IntN(4)
	at, n := raceMailVA+addr.GVA(first)<<addr.PageShift, uint64(1+rng.IntN(4-first))
	r.protect(at, n, guestmem.ProtRead)
	r.protect(at, n, guestmem.ProtRead|guestmem.ProtWrite)
}

// fork forks, and checks that the child has page i as published and the mail of
// one moment. What it returns checks that the child still has, and closes it.
//
// Preconditions: page i is locked.
func (r *races) fork(i int, rng *rand.Rand) (check func()) {
	child, err := r.as.Fork()
	if err != nil {
		r.fail("fork: %v", err)
		return nil
	}
	load := func(gva addr.GVA) uint64 {
		x, err := child.Load64(r.ctx, gva)
		r.must("read the child", err)
		return x
	}
	look := func() (got [6]uint64) {
		got[0] = load(addr.GVA(dataAt(raceStates)) + addr.GVA(8*i))
		if got[0]&3 >= stateRead {
			got[1] = load(addr.GVA(dataAt(i)))
		}
		for k := range 4 {
			got[2+k] = load(raceMailVA + addr.GVA(k)<<addr.PageShift)
		}
		return got
	}
	had, state := look(), r.pages[i].state
	if had[0] != state || state&3 >= stateRead && had[1] != state {
		r.fail("the child has state %#x and page %#x, want %#x", had[0], had[1], state)
	}
	for k := 2; k < 6; k += 2 {
		if data, flag := had[k], had[k+1]; data != flag && data != flag+1 {
			r.fail("the child has message %d with flag %d: not a moment of its parent", data, flag)
		}
	}
	if rng.IntN(2) == 0 {
		// Nothing that the child writes may reach the guests, who would take
		// these for what they were long ago. Its mail may be read-only just now.
		if state&3 == stateWrite {
			r.must("write to the child", child.Store64(r.ctx, addr.GVA(dataAt(i)), 0))
			had[1] = 0
		}
		if child.Store64(r.ctx, raceMailVA, 0) == nil {
			had[2] = 0
		}
	}
	return func() {
		if now := look(); now != had {
			r.fail("the child had %#x, and has %#x", had, now)
		}
		r.must("close", child.Close())
	}
}

// TestR8GuestsAndHostRaceInOneSpace is the race for a second and a half.
func TestR8GuestsAndHostRaceInOneSpace(t *testing.T) {
	length := 1500 * time.Millisecond
	if *soak {
		length = time.Minute
	}
	m, p := newGuestMemory(t, 8<<20, PlatformOptions{MaxVCPUs: 2})
	as := newGuestSpace(t, m, racePages+1, progRace)
	defer as.Close()
	if _, err := as.Map(t.Context(), guestmem.MapOptions{
		Addr: raceMailVA, Length: 4 * addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed,
	}); err != nil {
		t.Fatal(err)
	}
	r := &races{t: t, ctx: t.Context(), p: p, as: as}
	for i := range r.pages {
		r.write(i, stateWrite)
		r.publish(i, stateWrite)
	}
	var guests, hosts sync.WaitGroup
	var cs [2]*Context
	for i := range cs {
		mail := func(i int) uint64 { return uint64(raceMailVA) + uint64(2*i)*addr.PageSize }
		cs[i] = p.NewContext()
		defer cs[i].Close()
		cs[i].Regs = Regs{
			RIP: uint64(codeAt(0)), RDI: dataAt(0), RSI: dataAt(raceStates),
			R8: uint64(8 * (i + 1)), R9: mail(i), R10: mail(1 - i),
		}
		guests.Go(func() { r.guest(cs[i]) })
		hosts.Go(func() { r.host(rand.Uint64()) })
	}
	for end := time.Now().Add(length); time.Now().Before(end) && !r.done.Load(); {
		time.Sleep(10 * time.Millisecond)
	}
	r.done.Store(true)
	hosts.Wait()
	for _, c := range cs {
		c.Kick()
	}
	guests.Wait()
	report := ""
	for i, c := range cs {
		g := &c.Regs
		report += fmt.Sprintf("guest %d: %d accesses judged, %d and %d refusals, %d messages; ", i, g.R14, g.R11, g.RSP, g.R12)
		if !t.Failed() && (g.R14 == 0 || g.R11 == 0 || g.RSP == 0 || g.R13 == 0) {
			t.Errorf("guest %d judged nothing: %+v", i, *g)
		}
	}
	s := m.Stats()
	t.Logf("%s%d faults resolved, %d refused; %d changes, %d forks, %d pages copied, %d reused",
		report, r.resolved.Load(), r.refused.Load(), r.changes(), s.Forks, s.Copied, s.Reused)
}

func (r *races) changes() (n uint64) {
	for i := range r.ops {
		n += r.ops[i].Load()
	}
	return n
}
