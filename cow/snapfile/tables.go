package snapfile

import (
	"hash/crc32"
	"io"
	"math"
	"sort"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The sizes of records in the file.
const (
	regionSize = 3*8 + 4 + 4 + 2*8 + 256
	chunkSize  = 16
	extentSize = 16
)

const regionReadOnly = 1 // the flag of a region

// kinds of extents.
const (
	kindData = iota
	kindZero
)

// chunk says where some pages are: those of the extents that name it, in
// their order.
type chunk struct {
	off     uint64 // in the file; not recorded, since it follows from the rest
	stored  uint32 // bytes in the file; pages*4096 if it is not encoded
	pages   uint32
	sum     uint32 // of the stored bytes
	content uint32 // of the pages
}

func (c *chunk) bytes() uint64 { return uint64(c.pages) * addr.PageSize }
func (c *chunk) encoded() bool { return uint64(c.stored) != c.bytes() }
func (c *chunk) fields(r *cursor) {
	r.u32(&c.stored)
	r.u32(&c.pages)
	r.u32(&c.sum)
	r.u32(&c.content)
}

// zeroes in place of the number of a chunk: an extent of zeroes.
const zeroes = math.MaxUint32

// extent is a run of pages of a region, either in a chunk from a page of it on,
// or known to be zero. Where and in what chunk follows from the order: the
// extents of data use the chunks up, one after another.
type extent struct {
	first uint64 // page of the region
	n     uint32
	at    uint32 // page of the chunk
	chunk uint32 // or zeroes
}

func (e *extent) end() uint64 { return e.first + uint64(e.n) }

func (e *extent) fields(r *cursor) {
	kind := uint32(kindData)
	if e.chunk == zeroes {
		kind = kindZero
	}
	r.u64(&e.first)
	r.u32(&e.n)
	r.u32(&kind)
	if r.read {
		e.chunk = kind
	}
}

// table is a region with what the file has of it. The extents are in ascending
// order and do not overlap; pages in none are those of the parent, or zero.
type table struct {
	Region
	nChunks   uint64
	rawOff    uint64 // of its first page in a raw file
	extents   []extent
	dataPages uint64
	zeroPages uint64
}

func (t *table) fields(r *cursor, nExtents *uint64) {
	base, flags, nameLen, name := uint64(t.Base), uint32(0), uint32(len(t.Name)), [256]byte{}
	if t.ReadOnly {
		flags = regionReadOnly
	}
	copy(name[:], t.Name)
	r.u64(&base)
	r.u64(&t.Size)
	r.u64(&t.PageSize)
	r.u32(&flags)
	r.u32(&nameLen)
	r.u64(&t.nChunks)
	r.u64(nExtents)
	r.bytes(name[:])
	if r.read {
		t.Base, t.ReadOnly = addr.GPA(base), flags&regionReadOnly != 0
		t.Name = string(name[:min(nameLen, MaxName)])
	}
}

// from returns the index of the first extent that ends above page.
func (t *table) from(page uint64) int {
	return sort.Search(len(t.extents), func(i int) bool { return t.extents[i].end() > page })
}

// tables are all tables of a file.
type tables struct {
	regions []table
	chunks  []chunk
}

// find returns the index of the region that [gpa, gpa+length) lies in.
func (t *tables) find(gpa addr.GPA, length uint64) (int, error) {
	i := sort.Search(len(t.regions), func(i int) bool {
		r := &t.regions[i]
		return uint64(r.Base)+r.Size > uint64(gpa)
	})
	if i == len(t.regions) || gpa < t.regions[i].Base || length > t.regions[i].Size-uint64(gpa-t.regions[i].Base) {
		return 0, regionsf("[%v, +%#x) lies in no region", gpa, length)
	}
	return i, nil
}

// at returns the index of the region with that base.
func (t *tables) at(base addr.GPA) (int, error) {
	i, err := t.find(base, addr.PageSize)
	if err != nil || t.regions[i].Base != base {
		return 0, regionsf("no region begins at %v", base)
	}
	return i, nil
}

// A tableWriter gives the tables out in pieces, and sums them up.
type tableWriter struct {
	buf []byte
	off uint64
	sum uint32
	out func(p []byte, off uint64) error
}

const tablePiece = 1 << 20

// record returns where the next record goes, all zeroes.
func (w *tableWriter) record(size int) (cursor, error) {
	n := len(w.buf)
	if n+size > cap(w.buf) {
		if err := w.flush(); err != nil {
			return cursor{}, err
		}
		n = 0
	}
	w.buf = w.buf[:n+size]
	clear(w.buf[n:])
	return cursor{b: w.buf[n:]}, nil
}

func (w *tableWriter) flush() error {
	w.sum = crc32.Update(w.sum, castagnoli, w.buf)
	err := w.out(w.buf, w.off)
	w.off += uint64(len(w.buf))
	w.buf = w.buf[:0]
	return err
}

// write writes the tables from off on and returns their checksum.
func (t *tables) write(off uint64, out func(p []byte, off uint64) error) (uint32, error) {
	w := &tableWriter{buf: make([]byte, 0, tablePiece), off: off, out: out}
	for i := range t.regions {
		r := &t.regions[i]
		n := uint64(len(r.extents))
		c, err := w.record(regionSize)
		if err != nil {
			return 0, err
		}
		r.fields(&c, &n)
	}
	for i := range t.chunks {
		c, err := w.record(chunkSize)
		if err != nil {
			return 0, err
		}
		t.chunks[i].fields(&c)
	}
	for i := range t.regions {
		extents := t.regions[i].extents
		for j := range extents {
			c, err := w.record(extentSize)
			if err != nil {
				return 0, err
			}
			extents[j].fields(&c)
		}
	}
	err := w.flush()
	return w.sum, err
}

// A tableReader reads records, piece by piece: what a record makes room for is
// never more than a small multiple of what has been read of the file.
type tableReader struct {
	src  io.ReaderAt
	off  uint64
	left uint64 // not read from the file yet
	buf  []byte // read, and not looked at yet
	page []byte
	sum  uint32
}

// record returns the next record. It is good until the next call.
func (r *tableReader) record(size int) (cursor, error) {
	if len(r.buf) < size {
		n := copy(r.page, r.buf)
		m := min(uint64(len(r.page)-n), r.left)
		if _, err := readFull(r.src, r.page[n:n+int(m)], r.off); err != nil {
			return cursor{}, err
		}
		r.sum = crc32.Update(r.sum, castagnoli, r.page[n:n+int(m)])
		r.off, r.left = r.off+m, r.left-m
		r.buf = r.page[:n+int(m)]
	}
	c := cursor{b: r.buf[:size], read: true}
	r.buf = r.buf[size:]
	return c, nil
}

// readFull fills p from off on. It may be more than one read.
func readFull(src io.ReaderAt, p []byte, off uint64) (int, error) {
	n, err := src.ReadAt(p, int64(off))
	if n == len(p) {
		return n, nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, inputError("read", err)
}
