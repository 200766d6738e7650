package cow

import (
	"errors"
	"fmt"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
)

// Blocks come from the same frames as everything else, and go back to them:
//
//	whole    free blocks that the host backs; the next block is the last of them,
//	         and when frames are wanted and none is free, one is broken up
//	runs     a block is cut from the highest that has one, populated by one
//	         call, and zero; frames are cut from the lowest, so that the two
//	         meet late
//	pieces   a block whose 512 frames are free one by one, backed or not, is
//	         found by counting all of them, which is done again only when
//	         another 512 have been freed
//
// Where there is none, who asked does with 4 KiB frames. Nothing is moved to make
// a block: frames belong to whoever has them.

var atBlock = inject.New("pool: allocate a block")

// ErrNoBlock says that there is no free block of 2 MiB; there may be free frames.
// It is an ErrNoMemory to errors.Is.
var ErrNoBlock = fmt.Errorf("no free block of 2 MiB: %w", ErrNoMemory)

// AllocBlock takes a block, with one 2 MiB leaf to be. zero says that its bytes
// are known to be zero; otherwise they may be anything.
//
// Errors: ErrNoBlock; ErrNoMemory if the host has no memory to back it.
func (p *Pool) AllocBlock() (f addr.PFN, zero bool, err error) {
	if err := atBlock.Err(); err != nil {
		return 0, false, fmt.Errorf("%w: %w", ErrNoBlock, err)
	}
	p.mu.Lock()
	if n := len(p.whole); n > 0 {
		f = p.whole[n-1]
		p.whole = p.whole[:n-1]
		p.mu.Unlock()
		p.beginBlock(f)
		return f, false, nil
	}
	f, bare, ok := p.takeBlockLocked()
	p.mu.Unlock()
	if !ok {
		return 0, false, ErrNoBlock
	}
	if err := p.backBlock(f, bare); err != nil {
		return 0, false, err
	}
	p.beginBlock(f)
	return f, len(bare) == 1 && bare[0].n == BlockFrames, nil
}

// takeBlockLocked takes the frames of a block off the lists. bare is what of it
// the host does not back; if there is any, the caller counts as away.
func (p *Pool) takeBlockLocked() (f addr.PFN, bare []run, ok bool) {
	f, ok = p.blockInRunsLocked()
	if !ok {
		f, ok = p.blockInPiecesLocked()
	}
	if !ok {
		return 0, nil, false
	}
	p.free = slices.DeleteFunc(p.free, func(x freeFrame) bool { return blockOf(x.frame()) == blockOf(f) })
	bare = p.cutRunsLocked(run{f, BlockFrames})
	if len(bare) > 0 {
		p.away++
	}
	return f, bare, true
}

// blockInRunsLocked finds the highest block that lies in one run.
func (p *Pool) blockInRunsLocked() (addr.PFN, bool) {
	for _, r := range p.runs {
		end := (r.first + addr.PFN(r.n)) / BlockFrames * BlockFrames
		if end >= BlockFrames && end-BlockFrames >= r.first {
			return end - BlockFrames, true
		}
	}
	return 0, false
}

// blockInPiecesLocked finds a block all of whose frames are free.
func (p *Pool) blockInPiecesLocked() (addr.PFN, bool) {
	if p.freed < p.lookAgain || uint64(len(p.free))+p.inRuns < BlockFrames {
		return 0, false
	}
	if p.tally == nil {
		p.tally = make([]uint16, len(p.Counts.blocks.counts))
	}
	clear(p.tally)
	base := p.Counts.blocks.firstBlock
	for _, x := range p.free {
		b := blockOf(x.frame()) - base
		if p.tally[b]++; p.tally[b] == BlockFrames {
			return addr.PFN(b+base) * BlockFrames, true
		}
	}
	for _, r := range p.runs {
		for at, end := r.first, r.first+addr.PFN(r.n); at < end; {
			next := min(end, (at/BlockFrames+1)*BlockFrames)
			b := blockOf(at) - base
			if p.tally[b] += uint16(next - at); p.tally[b] == BlockFrames {
				return addr.PFN(b+base) * BlockFrames, true
			}
			at = next
		}
	}
	p.lookAgain = p.freed + BlockFrames
	return 0, false
}

// cutRunsLocked takes what is in r out of the runs and returns it.
func (p *Pool) cutRunsLocked(r run) (cut []run) {
	end := r.first + addr.PFN(r.n)
	var left []run
	for _, x := range p.runs {
		xEnd := x.first + addr.PFN(x.n)
		first, last := max(x.first, r.first), min(xEnd, end)
		if first >= last {
			left = append(left, x)
			continue
		}
		cut = append(cut, run{first, uint64(last - first)})
		p.inRuns -= uint64(last - first)
		if last < xEnd {
			left = append(left, run{last, uint64(xEnd - last)})
		}
		if x.first < first {
			left = append(left, run{x.first, uint64(first - x.first)})
		}
	}
	p.runs = left
	return cut
}

// backBlock has the host back what it does not of a block that was taken off the
// lists. On an error all of it is on them again.
func (p *Pool) backBlock(f addr.PFN, bare []run) error {
	if len(bare) == 0 {
		return nil
	}
	var err error
	done := 0
	for ; done < len(bare) && err == nil; done++ {
		err = p.store.Populate(bare[done].first, bare[done].n)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.returnedLocked()
	if err == nil {
		return nil
	}
	failed := bare[done-1:]
	p.addRunsLocked(failed)
	for i := range addr.PFN(BlockFrames) {
		if at := f + BlockFrames - 1 - i; !inRuns(failed, at) {
			p.free = append(p.free, makeFree(at, false))
		}
	}
	return fmt.Errorf("populate a block at %v: %w", f, errors.Join(ErrNoMemory, err))
}

func inRuns(rs []run, f addr.PFN) bool {
	return slices.ContainsFunc(rs, func(r run) bool { return uint64(f-r.first) < r.n })
}

// DropBlock takes one 2 MiB leaf to a block away. With the last, the block's
// references to its frames go, and what nobody else refers to is free.
func (p *Pool) DropBlock(f addr.PFN) {
	if !p.dropBlock(f) {
		return
	}
	var frames, buf [BlockFrames]addr.PFN
	for i := range frames {
		frames[i] = f + addr.PFN(i)
	}
	last := p.dropEach(frames[:], buf[:0])
	if len(last) < BlockFrames {
		p.freeEach(last)
		return
	}
	for _, f := range last {
		p.poison(f)
	}
	p.mu.Lock()
	p.whole = append(p.whole, f)
	p.freedLocked(BlockFrames)
}

// freedLocked notes that n frames have been put on the lists, unlocks, and gives
// back to the host what are too many.
func (p *Pool) freedLocked(n int) {
	p.freed += uint64(n)
	excess := p.populatedLocked() > p.trimFrom && !p.trimming
	if excess {
		p.trimming = true
	}
	p.mu.Unlock()
	if excess {
		p.trim()
	}
}

// populatedLocked returns how many free frames the host backs.
func (p *Pool) populatedLocked() uint64 {
	return uint64(len(p.free)) + BlockFrames*uint64(len(p.whole))
}

// breakBlockLocked makes free frames of a free block, and reports whether there
// was one.
func (p *Pool) breakBlockLocked() bool {
	n := len(p.whole)
	if n == 0 {
		return false
	}
	f := p.whole[n-1]
	p.whole = p.whole[:n-1]
	for i := range addr.PFN(BlockFrames) {
		p.free = append(p.free, makeFree(f+BlockFrames-1-i, false))
	}
	return true
}
