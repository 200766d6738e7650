package guestmem

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// ReadAt copies what guest memory held at the instant, from gpa on, and returns how
// many bytes it copied; fewer than len(p) only with an error. A page that is not in
// the layer is read where it is, and not copied into the layer for that.
//
// Errors: a *RegionError over ErrNoRegion; what the snapshot has failed with;
// ErrClosed; ErrBus for a file that has become shorter than its region; those of the
// fault server where the region is being restored.
func (s *Snapshot) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	const op = "read a snapshot"
	if err := s.begin(); err != nil {
		return 0, regionError(op, gpa, uint64(len(p)), err)
	}
	defer s.end()
	for done, try := 0, 0; done < len(p); try++ {
		at, rest := gpa+addr.GPA(done), p[done:]
		l := s.layerOf(at)
		if l == nil || at < gpa {
			return done, regionError(op, at, uint64(len(rest)), ErrNoRegion)
		}
		n, err := l.readSome(s.ctx, rest, uint64(at-l.Base))
		switch {
		case n > 0:
			done, try = done+n, 0
		case err == nil:
			err = backOff(s.ctx, try)
		}
		if err != nil {
			if s.ctx.Err() != nil {
				err = errSnapshotClosed
			}
			return done, regionError(op, gpa+addr.GPA(done), uint64(len(p)-done), err)
		}
	}
	return len(p), nil
}

// layerOf returns the layer of gpa, or nil.
func (s *Snapshot) layerOf(gpa addr.GPA) *layer {
	for _, l := range s.layers {
		if uint64(gpa-l.Base) < l.Size {
			return l
		}
	}
	return nil
}

// readSome reads from byte off of the region on, as far as the pages are of one
// kind and it is worth a claim.
func (l *layer) readSome(ctx context.Context, p []byte, off uint64) (int, error) {
	first := off / addr.PageSize
	last := min((off+uint64(len(p))-1)/addr.PageSize, l.nPages-1, first+pieceBytes/addr.PageSize-2)
	n := uint64(1)
	has, data := l.has.get(first), l.data.get(first)
	for first+n <= last && l.has.get(first+n) == has && (!has || l.data.get(first+n) == data) {
		n++
	}
	p = p[:min(uint64(len(p)), (first+n)*addr.PageSize-off)]
	switch {
	case has && l.data.get(first): // set before has
		return l.readLayer(p, off)
	case has:
		clear(p)
		return len(p), nil
	}
	return l.readParent(ctx, p, off, first, n)
}

func (l *layer) readLayer(p []byte, off uint64) (int, error) {
	if err := l.read(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readParent reads pages that the layer lacked, in the parent, where they are
// claimed meanwhile. It returns 0 if the layer has got some of them, or somebody else
// has claimed one.
func (l *layer) readParent(ctx context.Context, p []byte, off, first, n uint64) (int, error) {
	r, m := l.region, l.s.mem
	if err := l.s.Err(); err != nil {
		return 0, err
	}
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	b := (*buf)[:n*addr.PageSize]
	deliver := func(err error) (int, error) {
		if err != nil {
			return 0, fmt.Errorf("read the region %v: %w", r, err)
		}
		return copy(p, b[off-first*addr.PageSize:]), nil
	}
	if err := r.fetchAll(ctx, first, n); err != nil {
		if !l.lacksAll(first, n) {
			return 0, nil // copied since, and the region may have gone
		}
		if why := l.s.Err(); why != nil {
			return 0, why // and here, too
		}
		return 0, fmt.Errorf("fetch pages of the region %v: %w", r, err)
	}
	if l.arms == nil {
		// Nobody claims pages here. What is lacked still, by a snapshot that has not
		// ended, was in its place when it was read: see fillConstant.
		err := r.readHost(first, b)
		if !l.lacksAll(first, n) {
			return 0, nil
		}
		if why := l.s.Err(); why != nil {
			return 0, why
		}
		return deliver(err)
	}
	m.snaps.gate.RLock()
	defer m.snaps.gate.RUnlock()
	var got []claimed
	defer func() {
		for _, c := range got {
			l.arms.unclaim(c.word, c.mask)
		}
	}()
	for word, mask := range l.arms.within(first, n) {
		k := l.arms.claim(word, mask)
		got = append(got, claimed{word, k})
		if k != mask { // somebody copies one, or has
			return 0, l.checkUnarmed(word, mask&^k&^l.arms.armed(word))
		}
	}
	if !l.lacksAll(first, n) {
		return 0, nil // copied since, and perhaps stored to and armed again
	}
	if err := l.s.Err(); err != nil {
		return 0, err
	}
	return deliver(r.readHost(first, b))
}

type claimed struct {
	word uint64
	mask uint32
}

// lacksAll reports whether the layer has none of the pages.
func (l *layer) lacksAll(first, n uint64) bool {
	for page := first; page < first+n; page++ {
		if l.has.get(page) {
			return false
		}
	}
	return true
}

// Data calls yield, in order, with the runs of 4 KiB pages of the region at base
// that may hold something else than zero; yield returns false to end it. Those of a
// complete snapshot do.
//
// Errors: a *RegionError over ErrNoRegion; what the snapshot has failed with;
// ErrClosed; that of looking for pages.
func (s *Snapshot) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	const op = "data of a snapshot"
	if err := s.begin(); err != nil {
		return regionError(op, base, 0, err)
	}
	defer s.end()
	l := s.at(base)
	if l == nil {
		return regionError(op, base, 0, ErrNoRegion)
	}
	var held *pageSet
	any := true
	if l.left.Load() > 0 {
		err := s.Err()
		if err == nil {
			held, err = l.mayHold() // before has: see markZero
		}
		if err != nil && l.left.Load() > 0 {
			return regionError(op, base, l.Size, err)
		}
		any = held == nil
	}
	stopped := false
	runs := pageRuns{yield: func(first, n uint64) {
		if !stopped {
			stopped = !yield(l.Base+addr.GPA(first*addr.PageSize), n)
		}
	}}
	for w := range l.has {
		lacks := l.has.all(uint64(w), l.nPages) &^ l.has[w].Load()
		if lacks != 0 && !any {
			lacks &= held.members(uint64(w) * 64)
		}
		if v := lacks | l.data[w].Load(); bits.OnesCount64(v) > 0 && !stopped {
			runs.word(uint64(w)*64, v)
		}
	}
	runs.flush()
	return nil
}
