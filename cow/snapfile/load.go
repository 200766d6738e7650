package snapfile

import (
	"bytes"
	"io"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// loader reads the tables of a file whose header is right, and holds every
// record against what is known by then. Of what Write cannot have written
// nothing is accepted, even if the checksum is right.
type loader struct {
	h        *header
	r        tableReader
	t        tables
	nExtents []uint64 // of each region
}

// room is for how many records space is made before any of them was read.
const room = 1 << 14

func loadTables(src io.ReaderAt, h *header) (*tables, error) {
	n := h.tablesLen()
	l := &loader{h: h, r: tableReader{src: src, off: h.tablesOff, left: n, page: make([]byte, min(n, tablePiece))}}
	for _, step := range []func() error{l.regions, l.chunks, l.extents} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if l.r.sum != h.tablesCRC {
		return nil, damagedf("the checksum of the tables is %#x and should be %#x", l.r.sum, h.tablesCRC)
	}
	return &l.t, nil
}

func (l *loader) regions() error {
	var list []Region
	var nChunks, nExtents, guestBytes uint64
	for range l.h.nRegions {
		var t table
		var n uint64
		c, err := l.r.record(regionSize)
		if err != nil {
			return err
		}
		record := c.b
		t.fields(&c, &n)
		if !isExact(record, &t, n) {
			return damagedf("the record of %v has something beside its fields", t.Region)
		}
		// Neither sum overflows: there are at most MaxRegions of at most that.
		if t.nChunks > l.h.nChunks || n > l.h.nExtents {
			return damagedf("%v has more chunks or extents than the file", t.Region)
		}
		nChunks, nExtents = nChunks+t.nChunks, nExtents+n
		t.rawOff = headerSize + guestBytes
		guestBytes += min(t.Size, MaxGuest)
		list = append(list, t.Region)
		l.t.regions = append(l.t.regions, t)
		l.nExtents = append(l.nExtents, n)
	}
	if err := checkRegions(list); err != nil {
		return damagedf("%v", err)
	}
	if nChunks != l.h.nChunks || nExtents != l.h.nExtents || guestBytes != l.h.guestBytes {
		return damagedf("the regions have %d chunks, %d extents and %d bytes, the header says %d, %d and %d",
			nChunks, nExtents, guestBytes, l.h.nChunks, l.h.nExtents, l.h.guestBytes)
	}
	return nil
}

// isExact reports whether a region's record has nothing beside its fields.
func isExact(record []byte, t *table, nExtents uint64) bool {
	again := make([]byte, regionSize)
	t.fields(&cursor{b: again}, &nExtents)
	return bytes.Equal(again, record)
}

func (l *loader) chunks() error {
	l.t.chunks = make([]chunk, 0, min(l.h.nChunks, room))
	perChunk := l.h.chunkSize / addr.PageSize
	off, pages := uint64(headerSize), uint64(0)
	for i := range l.h.nChunks {
		var c chunk
		rec, err := l.r.record(chunkSize)
		if err != nil {
			return err
		}
		c.fields(&rec)
		switch {
		case c.pages == 0 || c.pages > perChunk || c.stored == 0 || uint64(c.stored) > c.bytes():
			return damagedf("chunk %d has %d bytes for %d pages", i, c.stored, c.pages)
		case c.encoded() && l.h.codecID == codecNone:
			return damagedf("chunk %d is encoded, and there is no codec", i)
		case !c.encoded() && c.sum != c.content:
			return damagedf("chunk %d has two checksums", i)
		}
		c.off = off // of a packed file; extents knows better for a raw one
		off, pages = off+uint64(c.stored), pages+uint64(c.pages)
		l.t.chunks = append(l.t.chunks, c)
	}
	if off-headerSize != l.h.storedBytes || pages != l.h.nDataPages {
		return damagedf("the chunks have %d bytes and %d pages, the header says %d and %d", off-headerSize, pages, l.h.storedBytes, l.h.nDataPages)
	}
	return nil
}

func (l *loader) extents() error {
	next, zeroPages := uint32(0), uint64(0)
	for i := range l.t.regions {
		t := &l.t.regions[i]
		from := next
		if err := l.regionExtents(t, l.nExtents[i], &next); err != nil {
			return err
		}
		if uint64(next-from) != t.nChunks {
			return damagedf("%v has %d chunks, and its extents need %d", t.Region, t.nChunks, next-from)
		}
		zeroPages += t.zeroPages
	}
	if zeroPages != l.h.nZeroPages {
		return damagedf("the extents have %d pages of zeroes, the header says %d", zeroPages, l.h.nZeroPages)
	}
	return nil
}

// regionExtents reads the extents of a region. next is the next chunk.
func (l *loader) regionExtents(t *table, n uint64, next *uint32) error {
	t.extents = make([]extent, 0, min(n, room))
	at, used, end := uint32(0), false, uint64(0) // of the current chunk; of the extent before
	for range n {
		var e extent
		rec, err := l.r.record(extentSize)
		if err != nil {
			return err
		}
		e.fields(&rec)
		if e.n == 0 || e.first < end || e.first > t.nPages() || uint64(e.n) > t.nPages()-e.first {
			return damagedf("%v has an extent of %d pages from page %d on, behind page %d", t.Region, e.n, e.first, end)
		}
		end = e.end()
		switch kind := e.chunk; kind {
		case kindZero:
			if !l.h.increment() {
				return damagedf("%v has an extent of zeroes in a full file", t.Region)
			}
			e.chunk = zeroes
			t.zeroPages += uint64(e.n)
		case kindData:
			if uint64(*next) >= uint64(len(l.t.chunks)) {
				return damagedf("%v has an extent without a chunk", t.Region)
			}
			c := &l.t.chunks[*next]
			e.chunk, e.at = *next, at
			if e.n > c.pages-at || l.h.raw() && e.n != c.pages {
				return damagedf("%v has an extent of %d pages in %d pages of a chunk", t.Region, e.n, c.pages-at)
			}
			if l.h.raw() {
				c.off = t.rawOff + e.first*addr.PageSize
			}
			t.dataPages += uint64(e.n)
			if at += e.n; at == c.pages {
				*next, at = *next+1, 0
			}
			used = at != 0
		default:
			return damagedf("%v has an extent of kind %d", t.Region, kind)
		}
		t.extents = append(t.extents, e)
	}
	if used {
		return damagedf("%v ends within a chunk", t.Region)
	}
	return nil
}
