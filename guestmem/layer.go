package guestmem

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/sys"
)

// layer is where a snapshot keeps the pages of one region: a sparse memfd, in
// which a page of zeroes is a hole, and two bits for each page in the Go heap. A
// page is stored by a system call (layerStore), which fails where the host has no
// memory, and its bits are set after that.
type layer struct {
	SnapshotRegion
	s      *Snapshot
	region *Region // of the parent
	arms   *armMap // nil: nobody can store to the region, and nothing is armed
	image  *image
	to     layerStore
	nPages uint64
	left   atomic.Int64 // pages that it lacks

	has     pageBits // the page was copied, or is known to be zero
	data    pageBits // it was copied; set before has
	backed  pageBits // it has memory although it is zero, for clones to map
	backing sync.Mutex
	putting sync.Mutex // where there are no claims: one put at a time
}

// newLayer makes an empty layer of a region.
func newLayer(s *Snapshot, r *Region) (*layer, error) {
	l := &layer{
		SnapshotRegion: SnapshotRegion{r.name, r.base, r.size, r.pageSize, r.readOnly, r.backing},
		s:              s, region: r, nPages: r.nPages(),
	}
	fd, err := sys.NewMemfd("guestmm layer of "+r.name, r.size)
	if err != nil {
		return nil, hostShort(err)
	}
	if l.to, err = newLayerStore(s.stores, fd); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	l.image = newImage(fd)
	l.left.Store(int64(l.nPages))
	l.has, l.data, l.backed = newPageBits(l.nPages), newPageBits(l.nPages), newPageBits(l.nPages)
	return l, nil
}

// put takes over those of the pages from first on that the layer lacks. What p
// holds is what they held at the instant.
//
// Preconditions: the pages are claimed, or nobody can store to them and putting is held.
func (l *layer) put(first uint64, p []byte) error {
	n := uint64(len(p) / addr.PageSize)
	page := func(i uint64) []byte { return p[i*addr.PageSize : (i+1)*addr.PageSize] }
	for i := uint64(0); i < n; {
		if l.has.get(first + i) {
			i++
			continue
		}
		zero, j := allZero(page(i)), i+1
		for j < n && !l.has.get(first+j) && allZero(page(j)) == zero {
			j++
		}
		if !zero {
			if err := l.store(first+i, p[i*addr.PageSize:j*addr.PageSize]); err != nil {
				return fmt.Errorf("layer of the region %s: %w", l.Name, layerShort(err))
			}
			l.data.set(first+i, j-i)
		}
		fresh := l.has.set(first+i, j-i)
		if zero {
			l.s.stats.zero.Add(fresh) // markZero may have been faster
		} else {
			l.s.stats.copied.Add(fresh)
			if invariants.Enabled && fresh != j-i {
				panic(fmt.Sprintf("guestmem: page %d of the region %s is copied a second time", first+i, l.Name))
			}
		}
		if fresh > 0 {
			l.got(fresh)
		}
		i = j
	}
	return nil
}

// layerShort names the lack of memory for a layer.
func layerShort(err error) error {
	if errors.Is(err, ErrNoMemory) {
		return err
	}
	return hostShort(err)
}

func (l *layer) got(n uint64) {
	l.left.Add(-int64(n))
	if l.s.left.Add(-int64(n)) == 0 {
		l.s.finish(nil)
	}
}

// markZero says of the pages that are not in held, and that the layer lacks, that
// they were zero at the instant.
//
// Why they were: held was gathered before it is asked here what the layer lacks.
// A page that was a hole then, and still is not in the layer now, was never
// stored to since the instant, nor discarded, since either would have put it there
// first; so it was the same hole at the instant.
func (l *layer) markZero(held *pageSet) {
	for w := range l.has {
		first := uint64(w) * 64
		zero := l.has.all(uint64(w), l.nPages) &^ held.members(first) &^ l.has[w].Load()
		if zero == 0 {
			continue
		}
		zero &^= l.has[w].Or(zero)
		if n := uint64(bits.OnesCount64(zero)); n > 0 {
			l.s.stats.zero.Add(n)
			l.got(n)
		}
	}
}

// read fills p with what the layer has from byte off on.
//
// Preconditions: the layer has the pages.
func (l *layer) read(p []byte, off uint64) error {
	return sys.ReadFile(l.image.fd.File(), p, off)
}

// back gives pages that are zero memory of their own, so that a mapping of the
// layer finds them there without asking.
//
// Preconditions: the layer has the pages.
func (l *layer) back(first, n uint64) error {
	l.backing.Lock()
	defer l.backing.Unlock()
	for page := first; page < first+n; page++ {
		if l.data.get(page) || l.backed.get(page) {
			continue
		}
		if err := l.storeZeroes(page); err != nil {
			return fmt.Errorf("layer of the region %s: %w", l.Name, layerShort(err))
		}
		l.backed.set(page, 1)
	}
	return nil
}

// pageBits has one bit for each page of a region.
type pageBits []atomic.Uint64

func newPageBits(nPages uint64) pageBits { return make(pageBits, (nPages+63)/64) }

func (b pageBits) get(page uint64) bool { return b[page/64].Load()>>(page%64)&1 != 0 }

// set sets the bits of [first, first+n), and returns how many were not set.
func (b pageBits) set(first, n uint64) (fresh uint64) {
	for n > 0 {
		k := min(n, 64-first%64)
		mask := ^uint64(0) >> (64 - k) << (first % 64)
		fresh += uint64(bits.OnesCount64(mask &^ b[first/64].Or(mask)))
		first, n = first+k, n-k
	}
	return fresh
}

// hasAll reports whether all of [first, first+n) are set.
func (b pageBits) hasAll(first, n uint64) bool {
	for n > 0 {
		k := min(n, 64-first%64)
		mask := ^uint64(0) >> (64 - k) << (first % 64)
		if b[first/64].Load()&mask != mask {
			return false
		}
		first, n = first+k, n-k
	}
	return true
}

// all is the bits of word w that stand for one of nPages pages.
func (b pageBits) all(w, nPages uint64) uint64 {
	if left := nPages - w*64; left < 64 {
		return 1<<left - 1
	}
	return ^uint64(0)
}

// members returns the members among the 64 pages from first on, a multiple of 64.
func (s *pageSet) members(first uint64) uint64 {
	c := s.chunks[first/chunkPages].Load()
	if c == nil {
		return 0
	}
	return c.words[first/64%chunkWords].Load()
}
