package snapfile

import (
	"bytes"
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// encoder is a worker of a Write.
type encoder struct {
	w    *writer
	in   []byte // the pages of a batch
	kept []byte // and those that are not zero, one behind the other: part of in
	out  []byte // the encoded ones; of a codec only

	extents []extent // at and chunk are for the turn
	chunks  []chunk
}

func newEncoder(w *writer) *encoder { return &encoder{w: w} }

// batch deals with one batch.
func (e *encoder) batch(ctx context.Context, b *batch) error {
	if ctx.Err() != nil {
		return nil // somebody has said why
	}
	if err := e.read(b); err != nil {
		return err
	}
	e.split(b)
	if err := e.encode(); err != nil {
		return err
	}
	select {
	case <-b.turn:
	case <-ctx.Done():
		return nil
	}
	at := e.record(b)
	close(b.done)
	return e.write(at)
}

func (e *encoder) read(b *batch) error {
	if need := b.pages * addr.PageSize; uint64(cap(e.in)) < need {
		e.in = make([]byte, max(need, min(batchBytes, e.w.h.guestBytes)))
	}
	r, off := &e.w.regions[b.region], uint64(0)
	for _, run := range b.runs {
		gpa := r.gpaOf(run.first)
		p := e.in[off : off+run.bytes()]
		if n, err := e.w.img.ReadAt(p, gpa); n != len(p) {
			if err == nil {
				return imagef("%d of %d bytes at %v", n, len(p), gpa)
			}
			return fmt.Errorf("%w: at %v: %w", ErrImage, gpa, err)
		}
		off += run.bytes()
	}
	return nil
}

// split sorts out the zeroes, and cuts the others into chunks.
//
// In a packed file a chunk goes over gaps, so that scattered pages share one, and
// ends where a chunk of memory does once it is half full: dense memory has one
// chunk for each aligned piece, which is what a pager asks for. In a raw
// file it is one run.
func (e *encoder) split(b *batch) {
	e.extents, e.chunks = e.extents[:0], e.chunks[:0]
	most := uint64(e.w.h.chunkSize) / addr.PageSize
	from, to := uint64(0), uint64(0) // pages of in
	for _, run := range b.runs {
		for i := uint64(0); i < run.n; i, from = i+1, from+1 {
			page := run.first + i
			p := e.in[from*addr.PageSize : (from+1)*addr.PageSize]
			if isZero(p) {
				e.zero(page)
				continue
			}
			if from != to {
				copy(e.in[to*addr.PageSize:], p)
			}
			to++
			e.keep(page, most)
		}
	}
	e.kept = e.in[:to*addr.PageSize]
}

func (e *encoder) zero(page uint64) {
	if !e.w.h.increment() {
		return // a page in no extent is zero
	}
	if n := len(e.extents); n > 0 && e.extents[n-1].chunk == zeroes && e.extents[n-1].end() == page {
		e.extents[n-1].n++
		return
	}
	e.extents = append(e.extents, extent{first: page, n: 1, chunk: zeroes})
}

// keep adds a page to the last chunk, or a new one.
func (e *encoder) keep(page, most uint64) {
	var c *chunk
	if n := len(e.chunks); n > 0 {
		c = &e.chunks[n-1]
	}
	var last *extent
	if n := len(e.extents); n > 0 && e.extents[n-1].chunk != zeroes {
		last = &e.extents[n-1]
	}
	joins := last != nil && last.end() == page
	full := c == nil || uint64(c.pages) == most || page%most == 0 && uint64(c.pages) >= most/2
	if full || e.w.h.raw() && !joins {
		e.chunks = append(e.chunks, chunk{})
		c, joins = &e.chunks[len(e.chunks)-1], false
	}
	if joins {
		last.n++
	} else {
		e.extents = append(e.extents, extent{first: page, n: 1, at: c.pages, chunk: uint32(len(e.chunks) - 1)})
	}
	c.pages++
}

var zeroPage [addr.PageSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroPage[:len(p)]) }

// encode sums the chunks up, and has the codec make them smaller.
func (e *encoder) encode() error {
	e.out = e.out[:0]
	in := e.kept
	for i := range e.chunks {
		c := &e.chunks[i]
		p := in[:c.bytes()]
		in = in[len(p):]
		c.stored, c.content = uint32(len(p)), checksum(p)
		c.sum = c.content
		if e.w.codec == nil {
			continue
		}
		start := len(e.out)
		out, err := e.w.codec.Encode(e.out, p)
		if err != nil {
			return fmt.Errorf("%w: %s: encode: %w", ErrCodec, e.w.h.codecName, err)
		}
		if len(out) <= start {
			return fmt.Errorf("%w: %s made nothing of %d bytes", ErrCodec, e.w.h.codecName, len(p))
		}
		if n := len(out) - start; n < len(p) {
			c.stored, c.sum = uint32(n), checksum(out[start:])
		} else {
			out = append(out[:start], p...)
		}
		e.out = out
	}
	return nil
}

// record adds the batch to the tables, and returns where its data goes in a
// packed file.
//
// Preconditions: it is the batch's turn.
func (e *encoder) record(b *batch) (at uint64) {
	w := e.w
	t := &w.regions[b.region]
	before := uint32(len(w.chunks))
	at = w.end
	for i := range e.chunks {
		e.chunks[i].off = w.end
		w.end += uint64(e.chunks[i].stored)
	}
	for i := range e.extents {
		x := &e.extents[i]
		if x.chunk == zeroes {
			t.zeroPages += uint64(x.n)
			if n := len(t.extents); n > 0 && t.extents[n-1].chunk == zeroes && t.extents[n-1].end() == x.first && t.extents[n-1].n < 1<<31 {
				t.extents[n-1].n += x.n
				continue
			}
		} else {
			t.dataPages += uint64(x.n)
			if w.h.raw() {
				e.chunks[x.chunk].off = t.rawOff + x.first*addr.PageSize
			}
			x.chunk += before
		}
		t.extents = append(t.extents, *x)
	}
	t.nChunks += uint64(len(e.chunks))
	w.chunks = append(w.chunks, e.chunks...)
	if w.progress != nil {
		w.progress(b.passed, w.h.guestBytes)
	}
	return at
}

// write writes the data of the batch: of a packed file in one piece, of a raw one
// in runs of neighbours.
func (e *encoder) write(at uint64) error {
	data := e.kept
	if e.w.codec != nil {
		data = e.out
	}
	if !e.w.h.raw() {
		return e.w.out.write(data, at)
	}
	for i := 0; i < len(e.chunks); {
		off, n := e.chunks[i].off, uint64(0)
		for ; i < len(e.chunks) && e.chunks[i].off == off+n; i++ {
			n += uint64(e.chunks[i].stored)
		}
		if err := e.w.out.write(data[:n], off); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
