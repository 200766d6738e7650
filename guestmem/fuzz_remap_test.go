package guestmem

import (
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What the model of FuzzOps makes of Remap, and of areas that grow down.

// met is the page that an access meets: it grows the stack above, if it may.
func (s *fuzzSpace) met(gva addr.GVA) *fuzzPage {
	p := s.page(gva)
	if p != nil || !s.window.Contains(gva) {
		return p
	}
	gva = gva.RoundDown()
	top := gva
	for top < s.window.End && s.page(top) == nil {
		top += page
	}
	stack := s.page(top)
	if stack == nil || !stack.growsDown {
		return nil
	}
	end := top
	for q := s.page(end); q != nil && q.growsDown && q.prot == stack.prot && q.dontFork == stack.dontFork && q.wipeOnFork == stack.wipeOnFork; q = s.page(end) {
		end += page
	}
	if uint64(end-gva) > DefaultMaxStack {
		return nil
	}
	for below := gva - page; below >= s.window.Start && gva-below <= stackGuardGap; below -= page {
		if q := s.page(below); q != nil {
			if !q.growsDown && q.prot != ProtNone {
				return nil
			}
			break
		}
	}
	s.set(addr.Range{Start: gva, End: top}, func(uint64) *fuzzPage {
		q := *stack
		q.own, q.guard = nil, false
		return &q
	})
	return s.page(gva)
}

// remap takes from the answer where a range went, and whether an area ended where
// the model's pages look alike, as what areas are labelled with is not its own.
func (s *fuzzSpace) remap(o op, got result) result {
	old, _ := addr.RoundUpLength(o.length)
	now, _ := addr.RoundUpLength(o.off)
	flags := RemapFlags(o.flags)
	to := flags&remapTo != 0
	switch {
	case flags&^remapKnown != 0, !o.at.IsAligned(), now == 0, now > uint64(s.window.End),
		to && (o.to > s.window.End-addr.GVA(now) || !o.to.IsAligned() || flags&RemapMayMove == 0),
		flags&RemapDontUnmap != 0 && old != now,
		to && o.at+addr.GVA(old) > o.to && o.to+addr.GVA(now) > o.at:
		return result{errno: syscall.EINVAL}
	}
	r := fuzzRemap{s, o.at, old, now, flags, got}
	first := s.page(o.at)
	switch {
	case first == nil || flags&RemapFixed != 0 && old == now && o.at+addr.GVA(old) < o.at:
		return result{errno: syscall.EFAULT}
	case flags&RemapFixed != 0 && old == now:
		return r.moveAll(o.to)
	case (now > old || to) && old == 0 && first.shared == nil:
		return result{errno: syscall.EINVAL}
	}
	if now > old || to {
		need := min(old, now)
		alike := true
		for at := o.at; alike && uint64(at-o.at) < need; at += page {
			p := s.page(at)
			alike = p != nil && p.prot == first.prot && p.file == first.file && p.shared == first.shared && p.readOnly == first.readOnly && p.growsDown == first.growsDown
		}
		if !alike || got.errno == syscall.EFAULT && need > page {
			return result{errno: syscall.EFAULT}
		}
	}
	switch {
	case flags&RemapFixed != 0:
		return r.moveFixed(o.to)
	case now < old && !to:
		return r.cutTail(o.at)
	case now == old && !to:
		return result{value: uint64(o.at)}
	case got.errno == syscall.ENOMEM:
		return got
	}
	at := addr.GVA(got.value)
	inPlace := !to && at == o.at
	came := addr.Range{Start: at, End: at + addr.GVA(now)}
	if inPlace {
		came.Start += addr.GVA(old)
	}
	if taken, _ := s.mapped(came); taken || !s.window.ContainsRange(came) || got.errno != 0 || !inPlace && flags&RemapMayMove == 0 {
		return result{errno: syscall.EFAULT} // not possible
	}
	r.move(at)
	return got
}

// fuzzRemap is a remap whose parameters are right.
type fuzzRemap struct {
	s        *fuzzSpace
	from     addr.GVA
	old, now uint64
	flags    RemapFlags
	got      result
}

func (r fuzzRemap) unmap(at addr.GVA, n uint64) {
	r.s.set(addr.Range{Start: at, End: at + addr.GVA(n)}, func(uint64) *fuzzPage { return nil })
}

func (r fuzzRemap) cutTail(answer addr.GVA) result {
	if end, ok := r.from.Add(r.old); !ok || end > r.s.window.End {
		return result{errno: syscall.EINVAL}
	}
	r.unmap(r.from+addr.GVA(r.now), r.old-r.now)
	return result{value: uint64(answer)}
}

func (r fuzzRemap) moveAll(to addr.GVA) result {
	if to < r.s.window.Start {
		return result{errno: syscall.EPERM} // what is drawn below the window ends there
	}
	for off := addr.GVA(0); uint64(off) < r.old; off += page {
		if r.s.page(r.from+off) != nil {
			one := r
			one.from, one.old, one.now = r.from+off, page, page
			one.unmap(to+off, page)
			one.move(to + off)
		}
	}
	return result{value: uint64(to)}
}

func (r fuzzRemap) moveFixed(to addr.GVA) result {
	r.unmap(to, r.now)
	if r.s.page(r.from) == nil {
		return result{errno: syscall.EFAULT}
	}
	if r.now < r.old {
		if cut := r.cutTail(to); cut.errno != 0 {
			return cut
		}
		r.old = r.now
	}
	if to < r.s.window.Start {
		return result{errno: syscall.EPERM}
	}
	r.move(to)
	return result{value: uint64(to)}
}

// move moves old pages, or shows the first one's object again if that is 0, and
// adds what is new.
func (r fuzzRemap) move(to addr.GVA) {
	base := *r.s.page(r.from)
	var pages []*fuzzPage
	for off := uint64(0); off < r.old; off += page {
		at := r.from + addr.GVA(off)
		p := r.s.page(at)
		pages = append(pages, p)
		if to == r.from {
			continue
		}
		r.s.set(addr.Range{Start: at, End: at + page}, func(uint64) *fuzzPage {
			if r.flags&RemapDontUnmap == 0 {
				return nil
			}
			q := *p
			q.own, q.guard = nil, false
			return &q
		})
	}
	r.s.set(addr.Range{Start: to, End: to + addr.GVA(r.now)}, func(i uint64) *fuzzPage {
		if i < uint64(len(pages)) {
			return pages[i]
		}
		q := base
		q.own, q.guard = nil, false
		q.index += i
		return &q
	})
}

// growing is where a protect begins that asks for an area which grows: at its
// start, which the model takes for where pages stop looking alike.
func (s *fuzzSpace) growing(r addr.Range, grows Prot) (addr.GVA, syscall.Errno) {
	at := r.Start
	for at < min(r.End, s.window.End) && s.page(at) == nil {
		at += page
	}
	first := s.page(at)
	switch {
	case first == nil, at >= r.End, grows == protGrowsUp && at > r.Start:
		return 0, syscall.ENOMEM
	case grows == protGrowsUp, !first.growsDown:
		return 0, syscall.EINVAL
	}
	for q := s.page(at - page); q != nil && q.growsDown && q.prot == first.prot && q.dontFork == first.dontFork && q.wipeOnFork == first.wipeOnFork; q = s.page(at - page) {
		at -= page
	}
	return at, 0
}
