package snapfile

import (
	"context"
	"fmt"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
)

var atRead = inject.New("snapfile: read")

// ReadPages fills p, which is whole 4 KiB pages, with memory from gpa on, all of it
// within one region: each page from the newest file of the chain that has it,
// zeroes where none has. Of every chunk that it takes something from all has been
// checked, by now or when it came into the cache. After an error p holds zeroes, and
// nothing of it is memory of the guest.
//
// It costs what ctx cannot end: the read of a chunk.
//
// Errors: ErrDamaged, ErrTruncated, ErrCodec, with the file named that they are about;
// ErrRegions; ErrInvalid (not of whole pages); ErrClosed; that of ctx; those of
// reading.
func (f *File) ReadPages(ctx context.Context, p []byte, gpa addr.GPA) error {
	err := f.readPages(ctx, p, gpa)
	if err != nil {
		clear(p)
	}
	return fileError("read", f.path, err)
}

func (f *File) readPages(ctx context.Context, p []byte, gpa addr.GPA) error {
	return f.fill(p, gpa, func(l layer, q []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return fileError("read", l.file.path, l.file.readLayer(ctx, l, q))
	})
}

// fill has read fill each part of p that an extent holds, and clears the rest.
func (f *File) fill(p []byte, gpa addr.GPA, read func(l layer, q []byte) error) error {
	region, s, err := f.locate(p, gpa)
	if err != nil {
		return err
	}
	return f.eachLayer(region, s, func(l layer) error {
		q := p[(l.first-s.first)*addr.PageSize:][:l.bytes()]
		if l.extent == nil {
			clear(q)
			return nil
		}
		return read(l, q)
	})
}

func (f *File) locate(p []byte, gpa addr.GPA) (region int, s span, err error) {
	if f.closed.Load() {
		return 0, span{}, ErrClosed
	}
	if uint64(len(p))%addr.PageSize != 0 || uint64(gpa)%addr.PageSize != 0 {
		return 0, span{}, invalidf("%d bytes at %v are not whole pages", len(p), gpa)
	}
	if region, err = f.find(gpa, uint64(len(p))); err != nil {
		return 0, span{}, err
	}
	return region, span{uint64(gpa-f.regions[region].Base) / addr.PageSize, uint64(len(p)) / addr.PageSize}, nil
}

// readLayer reads part of an extent.
func (f *File) readLayer(ctx context.Context, l layer, p []byte) error {
	c := &f.chunks[l.extent.chunk]
	if !c.encoded() && l.n == uint64(c.pages) {
		return f.readChunk(c, p) // all of it, to where it is wanted
	}
	e, err := f.cache.get(ctx, cacheKey{f, l.extent.chunk}, c.bytes(), func(p []byte) error { return f.readChunk(c, p) })
	if err != nil {
		return err
	}
	copy(p, e.data[l.inChunk():])
	f.cache.put(e)
	return nil
}

// inChunk returns where in its chunk a layer begins, in bytes.
func (l *layer) inChunk() uint64 {
	return (uint64(l.extent.at) + l.first - l.extent.first) * addr.PageSize
}

// tryReadPages is readPages of what is zero or in the cache.
func (f *File) tryReadPages(p []byte, gpa addr.GPA) error {
	return f.fill(p, gpa, func(l layer, q []byte) error {
		e := l.file.cache.tryGet(cacheKey{l.file, l.extent.chunk})
		if e == nil {
			return ErrWouldBlock
		}
		copy(q, e.data[l.inChunk():])
		l.file.cache.put(e)
		return nil
	})
}

// storedBuffers are for chunks as they are in the file, before they are decoded.
var storedBuffers = sync.Pool{New: func() any { return new([]byte) }}

// readChunk reads a chunk, checks it and decodes it into p, which has its size.
func (f *File) readChunk(c *chunk, p []byte) error {
	if !c.encoded() {
		if err := f.readStored(c, p); err != nil {
			return err
		}
		return c.check(p)
	}
	buf := storedBuffers.Get().(*[]byte)
	defer storedBuffers.Put(buf)
	if uint64(cap(*buf)) < uint64(c.stored) {
		*buf = make([]byte, c.stored)
	}
	stored := (*buf)[:c.stored]
	if err := f.readStored(c, stored); err != nil {
		return err
	}
	return f.unpack(c, stored, p)
}

func (f *File) readStored(c *chunk, p []byte) error {
	if f.closed.Load() {
		return ErrClosed
	}
	err := atRead.Err()
	if err == nil {
		_, err = readFull(f.src, p, c.off)
	}
	if err != nil {
		return fmt.Errorf("chunk at %#x: %w", c.off, err)
	}
	return nil
}

// check holds what the file has of a chunk against its checksum.
func (c *chunk) check(stored []byte) error {
	if got := checksum(stored); got != c.sum {
		return damagedf("the checksum of the chunk at %#x is %#x and should be %#x", c.off, got, c.sum)
	}
	return nil
}

// unpack checks a chunk as it is in the file, and decodes it into p, of its size.
func (f *File) unpack(c *chunk, stored, p []byte) error {
	if err := c.check(stored); err != nil {
		return err
	}
	if !c.encoded() {
		copy(p, stored)
		return nil
	}
	out, err := f.codec.Decode(p[:0:len(p)], stored)
	if err != nil {
		return fmt.Errorf("%w: %s: decode the chunk at %#x: %w", ErrCodec, f.h.codecName, c.off, err)
	}
	if len(out) != len(p) || checksum(out) != c.content {
		return fmt.Errorf("%w: %s: the chunk at %#x became %d bytes, and not the %d that were written", ErrCodec, f.h.codecName, c.off, len(out), len(p))
	}
	if &out[0] != &p[0] {
		copy(p, out)
	}
	return nil
}
