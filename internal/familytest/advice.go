package familytest

import (
	"errors"
	"fmt"
	"slices"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// opMapAll maps all that lies next to each other anew, so that there is room for
// leaves of 2 MiB.
func opMapAll(f *family, s *space) (bool, error) { return opMapAt(f, s, 0, nRun, false) }

// opMapFile maps a file's pages: copies of a file that stays what it is, or the host's
// file, shared.
func opMapFile(f *family, s *space) (bool, error) {
	i := f.rng.IntN(nPages)
	n := runOf(i, 1+f.rng.IntN(6))
	shared := f.rng.IntN(2) == 0
	object, contents, flags := f.file, f.fileData[:], guestmem.MapPrivate
	if shared {
		object, contents, flags = f.host, f.hostData[:], guestmem.MapShared
	}
	if object == nil {
		return false, nil
	}
	_, err := s.as.Map(f.ctx, guestmem.MapOptions{
		Addr: f.at(i), Length: uint64(n) * f.unit, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: flags | guestmem.MapFixed, Object: object, Offset: uint64(i) * f.unit,
	})
	if err != nil {
		return false, err
	}
	for k := i; k < i+n; k++ {
		p := page{data: contents[k], area: area{prot: guestmem.ProtRead | guestmem.ProtWrite, shared: shared}}
		if !shared {
			p.origin = contents[k]
			p.data = p.empty()
		}
		s.pages[k] = p
	}
	return true, nil
}

// refusesLocked checks that what drops pages is refused where one of them is locked,
// if one is.
func (f *family) refusesLocked(s *space, i, n int, advice guestmem.Advice) (bool, error) {
	for k := i; k < i+n; k++ {
		if !s.pages[k].locked {
			continue
		}
		if err := s.as.Advise(f.ctx, f.at(k), f.unit, advice); !errors.Is(err, guestmem.ErrInvalid) {
			return true, fmt.Errorf("%v of page %d, which is locked: %w", advice, k, err)
		}
		return true, nil
	}
	return false, nil
}

func opGuard(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok {
		return false, nil
	}
	if f.rng.IntN(2) == 0 {
		for k := i; k < i+n; k++ {
			s.pages[k].guard = false
		}
		return true, s.as.Advise(f.ctx, f.at(i), uint64(n)*f.unit, guestmem.AdviceGuardRemove)
	}
	if locked, err := f.refusesLocked(s, i, n, guestmem.AdviceGuardInstall); locked {
		return false, err
	}
	for k := i; k < i+n; k++ {
		if s.pages[k].guard = true; !s.pages[k].shared {
			s.pages[k].data = s.pages[k].empty()
		}
	}
	return true, s.as.Advise(f.ctx, f.at(i), uint64(n)*f.unit, guestmem.AdviceGuardInstall)
}

func opLock(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok {
		return false, nil
	}
	lock := f.rng.IntN(2) == 0
	for k := i; k < i+n; k++ {
		s.pages[k].locked = lock
	}
	if lock {
		return true, s.as.Lock(f.ctx, f.at(i), uint64(n)*f.unit, guestmem.LockOnFault)
	}
	return true, s.as.Unlock(f.at(i), uint64(n)*f.unit)
}

// opAdvise says what becomes of pages in a child.
func opAdvise(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok {
		return false, nil
	}
	kinds := []struct {
		advice guestmem.Advice
		note   func(*area)
	}{
		{guestmem.AdviceDontFork, func(a *area) { a.dontFork = true }},
		{guestmem.AdviceDoFork, func(a *area) { a.dontFork = false }},
		{guestmem.AdviceWipeOnFork, func(a *area) { a.wipe = true }},
		{guestmem.AdviceKeepOnFork, func(a *area) { a.wipe = false }},
	}
	if !s.pages.all(i, n, func(p *page) bool { return !p.shared && p.origin == nil }) {
		kinds = kinds[:2]
	}
	kind := kinds[f.rng.IntN(len(kinds))]
	for k := i; k < i+n; k++ {
		kind.note(&s.pages[k].area)
	}
	return true, s.as.Advise(f.ctx, f.at(i), uint64(n)*f.unit, kind.advice)
}

func opPopulate(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok || !s.pages.all(i, n, (*page).isWritable) {
		return false, nil
	}
	r := addr.Range{Start: f.at(i), End: f.at(i) + addr.GVA(uint64(n)*f.unit)}
	return true, s.as.Populate(f.ctx, r, []guestmem.Access{guestmem.Read, guestmem.Write}[f.rng.IntN(2)])
}

// opPunch takes pages out of an object, for all who map it.
func opPunch(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok || !s.pages.all(i, n, func(p *page) bool { return p.shared && p.prot&guestmem.ProtWrite != 0 && !p.locked }) {
		return false, nil
	}
	for k := i; k < i+n; k++ {
		data := s.pages[k].data
		// A device goes on having the frame that was there, but where it is the host's
		// page of a file.
		if own := *data; !slices.Contains(f.hostData[:], data) {
			for _, p := range f.pins {
				p.replace(data, &own)
			}
		}
		*data = content{}
	}
	return true, s.as.Advise(f.ctx, f.at(i), uint64(n)*f.unit, guestmem.AdviceRemove)
}

func (p *pin) replace(old, by *content) {
	for i, d := range p.data {
		if d == old {
			p.data[i] = by
		}
	}
}

// opCollapse may be refused for many a reason, and changes nothing that shows.
func opCollapse(f *family, s *space) (bool, error) {
	err := s.as.Advise(f.ctx, f.at(0), nRun*f.unit, guestmem.AdviceCollapse)
	for _, refusal := range []error{guestmem.ErrInvalid, guestmem.ErrAgain, guestmem.ErrNoMemory, guestmem.ErrNoSpace} {
		if errors.Is(err, refusal) {
			return false, nil
		}
	}
	return true, err
}

// pageAt returns the page of the model at an address.
func (f *family) pageAt(gva addr.GVA) (int, bool) {
	for i := range nPages {
		if gva >= f.at(i) && gva < f.at(i)+addr.GVA(f.unit) {
			return i, true
		}
	}
	return 0, false
}
