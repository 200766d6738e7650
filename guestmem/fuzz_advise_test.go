package guestmem

import (
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// advise goes page by page: what the advice does to each, and which refuses it.
func (s *fuzzSpace) advise(o op) result {
	v := Advice(int32(o.data))
	n, ok := addr.RoundUpLength(o.length)
	r, ok2 := addr.RangeFrom(o.at, n)
	switch {
	case v != AdviceGuardInstall && v != AdviceGuardRemove && (v < 0 || v > AdviceCollapse || v > AdviceDontNeed && v < AdviceDontFork && v != AdviceFree && v != AdviceRemove),
		!o.at.IsAligned(), !ok, !ok2:
		return result{errno: syscall.EINVAL}
	}
	populates := map[Advice]Access{AdvicePopulateRead: Read, AdvicePopulateWrite: Write}[v]
	in := r.Intersect(s.window)
	for gva := in.Start; gva < in.End; gva += page {
		p := s.page(gva)
		if p == nil {
			if populates != 0 {
				return result{errno: syscall.ENOMEM}
			}
			continue
		}
		anonymous := p.file == nil && p.shared == nil
		switch v {
		case AdviceDontNeed, AdviceFree, AdviceRemove, AdviceCold, AdvicePageOut, AdviceGuardInstall:
			if p.locked {
				return result{errno: syscall.EINVAL}
			}
		}
		switch v {
		case AdviceDontNeed, AdviceDontNeedLocked:
			p.own = nil
		case AdviceDontFork, AdviceDoFork:
			p.dontFork = v == AdviceDontFork
		case AdviceWipeOnFork:
			if !anonymous {
				return result{errno: syscall.EINVAL}
			}
			p.wipeOnFork = true
		case AdviceKeepOnFork:
			p.wipeOnFork = false
		case AdviceFree:
			if !anonymous {
				return result{errno: syscall.EINVAL}
			}
		case AdviceRemove:
			if anonymous {
				return result{errno: syscall.EINVAL}
			}
			if p.shared == nil || p.readOnly {
				return result{errno: syscall.EACCES}
			}
			const last = maxOffset / page // the page that holds the last offset
			switch {
			case p.index > last:
				return result{errno: syscall.EINVAL}
			case p.index == last:
				return result{errno: syscall.EFBIG} // what of its area is below has no page there either
			}
			delete(p.shared.pages, p.index)
		case AdviceGuardInstall:
			p.own, p.guard = nil, true
		case AdviceGuardRemove:
			p.guard = false
		case AdviceCollapse:
			return result{errno: syscall.EINVAL}
		case AdvicePopulateRead, AdvicePopulateWrite:
			if p.prot&populates == 0 {
				return result{errno: syscall.EINVAL}
			}
			if p.trouble(populates) != noTrouble {
				return result{errno: syscall.EFAULT}
			}
		}
	}
	if _, all := s.mapped(r); n > 0 && !all {
		return result{errno: syscall.ENOMEM}
	}
	return result{}
}
