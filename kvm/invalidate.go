//go:build linux && amd64

package kvm

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// invalidate makes every vCPU forget its translations to the frames; as is nil
// for those of all spaces. The leaf entries were edited before.
//
//	byFlush             only TLBs cache: vCPUs in the space leave the guest, and
//	                    every vCPU reloads CR3 before it executes there again
//	byDontNeed,         KVM caches, by frame: taking the frame out of the slot's
//	byProtect           mapping for a moment has it drop each entry that leads
//	                    there, in every space, and wait for vCPUs that use them
//	byZap               KVM caches, and only this helps
func (p *Platform) invalidate(as rooted, frames []addr.PFN) {
	if len(frames) == 0 {
		return
	}
	switch p.traits.invalidate {
	case byFlush:
		p.flushSpace(as)
		return
	case byZap:
		p.mustZap()
		return
	}
	if !slices.IsSorted(frames) {
		frames = slices.Clone(frames)
		slices.Sort(frames)
	}
	for len(frames) > 0 {
		n := 1
		for n < len(frames) && frames[n] <= frames[n-1]+1 {
			n++
		}
		p.zapRun(frames[0], frames[n-1])
		frames = frames[n:]
	}
}

// zapRun drops what leads to the frames first to last.
func (p *Platform) zapRun(first, last addr.PFN) {
	if !p.region.contains(first) || !p.region.contains(last) {
		p.mustZap() // a device's, in another region, of any backing
		return
	}
	hva, length := p.region.hva(first), uint64(last-first+1)<<addr.PageShift
	zap := madviseDontNeed
	if p.traits.invalidate == byProtect {
		zap = mprotectPair
	}
	if zap(hva, length) != nil {
		// The mapping is locked (DONTNEED: EINVAL), or out of map areas
		// (mprotect: ENOMEM): fall back on what needs neither.
		p.mustZap()
	}
}

// mustZap drops everything. Where that fails, a vCPU that went on would write
// through a stale translation into a frame that is another's by now (R8, R12): so
// all of them leave the guest, and none enters it again before a zap succeeds,
// which each Run tries.
//
// stale is stored before the gates close, and a vCPU that passes its gate loads
// it after: one that does not see it is in the guest still when stopAll looks, and
// stopAll waits until it has left.
func (p *Platform) mustZap() {
	p.healing.Lock()
	err := p.spare.zap()
	p.stale.Store(err != nil)
	p.healing.Unlock()
	if err != nil {
		p.stopAll()
		p.resumeAll()
	}
}

// heal makes good for a mustZap that has failed.
func (p *Platform) heal() error {
	p.healing.Lock()
	defer p.healing.Unlock()
	if !p.stale.Load() {
		return nil
	}
	if err := p.spare.zap(); err != nil {
		return opError("Run: stale translations cannot be dropped", err)
	}
	p.stale.Store(false)
	return nil
}

// flushSpace has every vCPU that runs the space reload CR3 before it executes
// there again. One that was never in it, or comes to it from another space,
// reloads anyhow.
func (p *Platform) flushSpace(as rooted) {
	generation := p.generation.Add(1)
	if as == nil {
		p.flushed.Store(generation)
		p.stopAll()
		p.resumeAll()
		return
	}
	p.mu.Lock()
	s := p.spaces[as]
	if s != nil {
		s.generation.Store(generation)
	}
	p.mu.Unlock()
	if s != nil {
		p.stop(as)
		p.resume(as)
	}
}
