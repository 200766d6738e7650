package guestmem

import (
	"errors"

	"pgregory.net/rapid"
)

// marks are what advice and locks leave on a page's area.
type marks struct {
	locked, onFault, dontFork, wipe, random, sequential bool
}

// advised is what one advice does to a page that is mapped: the error that it is
// refused with, and then the call ends there.
type advised func(f *family, p *modelPage) error

func isAnonymous(p *modelPage) bool { return p.object == nil }

var machineAdvice = map[Advice]advised{
	AdviceNormal:     func(_ *family, p *modelPage) error { p.random, p.sequential = false, false; return nil },
	AdviceRandom:     func(_ *family, p *modelPage) error { p.random, p.sequential = true, false; return nil },
	AdviceSequential: func(_ *family, p *modelPage) error { p.random, p.sequential = false, true; return nil },
	AdviceWillNeed:   func(*family, *modelPage) error { return nil },
	AdviceDontFork:   func(_ *family, p *modelPage) error { p.dontFork = true; return nil },
	AdviceDoFork:     func(_ *family, p *modelPage) error { p.dontFork = false; return nil },
	AdviceKeepOnFork: func(_ *family, p *modelPage) error { p.wipe = false; return nil },
	AdviceWipeOnFork: func(_ *family, p *modelPage) error {
		if !isAnonymous(p) {
			return ErrInvalid
		}
		p.wipe = true
		return nil
	},
	AdviceCold:    func(_ *family, p *modelPage) error { return refusedIf(p.locked) },
	AdvicePageOut: func(_ *family, p *modelPage) error { return refusedIf(p.locked) },
	AdviceFree:    func(_ *family, p *modelPage) error { return refusedIf(p.locked || !isAnonymous(p)) },
	AdviceDontNeed: func(_ *family, p *modelPage) error {
		if p.locked {
			return ErrInvalid
		}
		p.words = p.fresh()
		return nil
	},
	AdviceDontNeedLocked: func(_ *family, p *modelPage) error { p.words = p.fresh(); return nil },
	AdviceRemove: func(f *family, p *modelPage) error {
		switch {
		case p.locked || isAnonymous(p):
			return ErrInvalid
		case !p.shared: // of a file
			return ErrDenied
		}
		f.empty(p.object, p.index)
		return nil
	},
	AdviceGuardInstall: func(_ *family, p *modelPage) error {
		if p.locked {
			return ErrInvalid
		}
		p.guard, p.words = true, p.fresh()
		return nil
	},
	AdviceGuardRemove: func(_ *family, p *modelPage) error { p.guard = false; return nil },
}

var machineAdvices = rapid.SampledFrom([]Advice{
	AdviceNormal, AdviceRandom, AdviceSequential, AdviceWillNeed, AdviceDontFork, AdviceDoFork, AdviceKeepOnFork, AdviceWipeOnFork,
	AdviceCold, AdvicePageOut, AdviceFree, AdviceDontNeed, AdviceDontNeedLocked, AdviceRemove, AdviceGuardInstall, AdviceGuardRemove,
})

func refusedIf(is bool) error {
	if is {
		return ErrInvalid
	}
	return nil
}

// empty takes a page out of an object: it is empty for all who map it shared, and
// what was there stays with who has pinned it.
func (f *family) empty(o *modelObject, index int) {
	if o.page(index) == nil {
		return
	}
	o.pages[index] = new(pageWords)
	for _, s := range f.spaces {
		for i := range s.pages {
			if p := &s.pages[i]; p.shared && p.object == o && p.index == index {
				p.words = o.pages[index]
			}
		}
	}
}

// advise goes through the pages as madvise does: up to the first that refuses; holes
// are told at the end.
func (f *family) advise(rt *rapid.T) {
	s, advice := f.drawSpace(rt), machineAdvices.Draw(rt, "advice")
	i, n := f.drawPages(rt)
	var want error
	for k := range n {
		p := &s.pages[i+k]
		if !p.mapped {
			want = ErrNoSpace
			continue
		}
		if err := machineAdvice[advice](f, p); err != nil {
			want = err
			break
		}
	}
	if err := s.as.Advise(ctx, at(i), uint64(n)*page, advice); !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: advice %d for pages [%d, %d): %v, want %v", s.as.id, advice, i, i+n, err, want)
	}
}

// populate stops at the first page that cannot be had.
func (f *family) populate(rt *rapid.T) {
	s, access := f.drawSpace(rt), rapid.SampledFrom([]Access{Read, Write}).Draw(rt, "access")
	i, n := f.drawPages(rt)
	var want error
	for k := 0; k < n && want == nil; k++ {
		switch p := &s.pages[i+k]; {
		case !p.mapped:
			want = ErrNoSpace
		case p.prot&access == 0:
			want = ErrInvalid
		default:
			want = p.err(access)
		}
	}
	advice := map[Access]Advice{Read: AdvicePopulateRead, Write: AdvicePopulateWrite}[access]
	if err := s.as.Advise(ctx, at(i), uint64(n)*page, advice); !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: populate pages [%d, %d) for %v: %v, want %v", s.as.id, i, i+n, access, err, want)
	}
}

// lock locks as far as there is no hole, and then wants every page.
func (f *family) lock(rt *rapid.T) {
	s, mode := f.drawSpace(rt), rapid.SampledFrom([]LockMode{LockNow, LockNow, LockOnFault}).Draw(rt, "mode")
	i, n := f.drawPages(rt)
	head := s.head(i, n)
	ok := head == n
	for k := range head {
		p := &s.pages[i+k]
		p.locked, p.onFault = true, mode == LockOnFault
		access := Read
		if p.prot&ProtWrite != 0 && !p.shared {
			access = Write
		}
		ok = ok && (mode == LockOnFault || p.err(access) == nil)
	}
	if err := s.as.Lock(ctx, at(i), uint64(n)*page, mode); ok != (err == nil) || !ok && !errors.Is(err, ErrNoSpace) {
		rt.Fatalf("space %d: lock of pages [%d, %d): %v, ok %v", s.as.id, i, i+n, err, ok)
	}
}

func (f *family) unlock(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	head := s.head(i, n)
	for k := range head {
		s.pages[i+k].locked, s.pages[i+k].onFault = false, false
	}
	if err := s.as.Unlock(at(i), uint64(n)*page); (head == n) != (err == nil) || head < n && !errors.Is(err, ErrNoSpace) {
		rt.Fatalf("space %d: unlock of pages [%d, %d), of which %d are mapped: %v", s.as.id, i, i+n, head, err)
	}
}

// unlockSource takes the lock off the area of a page that stays where it is when it is
// moved.
func (s *modelSpace) unlockSource(i int) {
	if !s.pages[i].locked {
		return
	}
	first, end := i, i+1
	for first > 0 && s.pages[first-1].continues(&s.pages[first]) {
		first--
	}
	for end < modelPages && s.pages[end-1].continues(&s.pages[end]) {
		end++
	}
	for k := first; k < end; k++ {
		s.pages[k].locked, s.pages[k].onFault = false, false
	}
}
