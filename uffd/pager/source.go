package pager

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Source is the image that pages come from. It never changes while it is
// used.
//
// ReadPages fills p with the image's bytes from off on, or returns an error; p
// is whole pages within Size. It may take its time and is called by several
// goroutines at once. A source that cannot give all of p gives an error: what
// it leaves out is never taken for zeroes. It should return early with ctx's
// error once ctx is done; if it does not, the caller's worker waits for it.
type Source interface {
	ReadPages(ctx context.Context, p []byte, off uint64) error
	Size() uint64
}

// A TryReader is a Source that can tell whether it has bytes at hand. Faults
// that it can answer are served at once, without a change of goroutine.
type TryReader interface {
	// TryReadPages is ReadPages without waiting. It returns ErrWouldBlock
	// where it would have to wait; any other error has the page read by
	// ReadPages, whose error counts.
	TryReadPages(p []byte, off uint64) error
}

// A ZeroRanger is a Source that knows parts of the image to be zero.
type ZeroRanger interface {
	// ZeroRanges calls yield for ranges that hold nothing but zeroes, in
	// order, until it returns false.
	ZeroRanges(yield func(off, length uint64) bool) error
}

// An Identity tells images apart: see ImageIdentity.
type Identity [32]byte

func (id Identity) String() string { return fmt.Sprintf("%x", id[:8]) }

// ImageIdentity computes an identity from the size and the content of 64 pages
// spread over the image: the same on every host, for every copy. Two images
// that differ in none of these have the same one; where that can be, name
// images yourself. An error is that of reading s.
func ImageIdentity(ctx context.Context, s Source) (Identity, error) {
	const samples = 64
	h := sha256.New()
	size := s.Size() &^ (smallPage - 1)
	var page [smallPage]byte
	binary.LittleEndian.PutUint64(page[:], size)
	h.Write(page[:8])
	for i := range uint64(samples) {
		if size == 0 {
			break
		}
		off := (size / smallPage * i / samples) * smallPage
		if err := s.ReadPages(ctx, page[:], off); err != nil {
			return Identity{}, &Error{Op: "identify image", Addr: 0, Offset: off, Err: err}
		}
		h.Write(page[:])
	}
	return Identity(h.Sum(nil)), nil
}

// readerSource is an io.ReaderAt as a Source.
type readerSource struct {
	r    io.ReaderAt
	size uint64
}

// ReaderSource makes a Source of the first size bytes of r. A reader that ends
// early is ErrTruncated; a last partial page of the image is ErrInvalid here.
func ReaderSource(r io.ReaderAt, size uint64) (Source, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	return &readerSource{r, size}, nil
}

func checkSize(size uint64) error {
	if size == 0 || size%smallPage != 0 || size > 1<<62 {
		return &Error{Op: "open image", Err: fmt.Errorf("%w: size %d is not of whole pages", ErrInvalid, size)}
	}
	return nil
}

func (s *readerSource) Size() uint64 { return s.size }

func (s *readerSource) ReadPages(_ context.Context, p []byte, off uint64) error {
	if err := checkRead(p, off, s.size); err != nil {
		return err
	}
	n, err := s.r.ReadAt(p, int64(off))
	return fullRead(n, len(p), err)
}

// checkRead refuses a read beyond the image.
func checkRead(p []byte, off, size uint64) error {
	if end := off + uint64(len(p)); end < off || end > size {
		return fmt.Errorf("%w: [%#x, +%#x) of %#x", ErrBeyondSource, off, len(p), size)
	}
	return nil
}

// fullRead makes an error of every answer to a read that is not all of it.
// io.ReaderAt may say EOF together with the last byte.
func fullRead(n, want int, err error) error {
	switch {
	case n == want:
		return nil
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %d of %d bytes", ErrTruncated, n, want)
	}
	return err
}

// bytesSource is an image in memory.
type bytesSource struct{ b []byte }

// BytesSource makes a Source of b, which is not changed from now on.
//
// Errors: ErrInvalid for a length that is 0 or not of whole pages.
func BytesSource(b []byte) (Source, error) {
	if err := checkSize(uint64(len(b))); err != nil {
		return nil, err
	}
	return bytesSource{b}, nil
}

func (s bytesSource) Size() uint64 { return uint64(len(s.b)) }

func (s bytesSource) ReadPages(_ context.Context, p []byte, off uint64) error {
	return s.TryReadPages(p, off)
}

func (s bytesSource) TryReadPages(p []byte, off uint64) error {
	if err := checkRead(p, off, s.Size()); err != nil {
		return err
	}
	copy(p, s.b[off:])
	return nil
}
