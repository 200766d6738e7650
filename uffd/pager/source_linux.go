package pager

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A FileSource is an image in a file. What is in the page cache is read
// without waiting; holes are known to be zero.
type FileSource struct {
	f      *os.File
	offset uint64
	size   uint64
}

// NewFileSource makes a Source of size bytes of f from offset on; size 0 means
// the rest of the file. The file stays the caller's, and open.
//
// Errors: ErrInvalid (not of whole pages), ErrBeyondSource (the file is
// shorter), those of fstat.
func NewFileSource(f *os.File, offset, size uint64) (*FileSource, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, &Error{Op: "open image", Err: err}
	}
	have := uint64(info.Size())
	if size == 0 && offset < have {
		size = have - offset
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if end := offset + size; end < offset || end > have {
		return nil, &Error{Op: "open image", Err: fmt.Errorf("%w: [%#x, +%#x) of a file of %#x bytes", ErrBeyondSource, offset, size, have)}
	}
	return &FileSource{f, offset, size}, nil
}

// Size returns the length of the image.
func (s *FileSource) Size() uint64 { return s.size }

// ReadPages reads by pread(2). A file that has become shorter is ErrTruncated.
func (s *FileSource) ReadPages(_ context.Context, p []byte, off uint64) error {
	if err := checkRead(p, off, s.size); err != nil {
		return err
	}
	n, err := s.f.ReadAt(p, int64(s.offset+off))
	return fullRead(n, len(p), err)
}

// TryReadPages reads what is in the page cache, by preadv2(2) with RWF_NOWAIT
// (Linux 4.14). Part of it being there is ErrWouldBlock.
func (s *FileSource) TryReadPages(p []byte, off uint64) error {
	if err := checkRead(p, off, s.size); err != nil {
		return err
	}
	n, err := preadNowait(int(s.f.Fd()), p, int64(s.offset+off))
	switch {
	case err == nil && n == len(p):
		return nil
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINTR):
		return ErrWouldBlock
	}
	return err
}

// ZeroRanges reports the holes of the file, found by SEEK_HOLE. A file system
// that cannot tell has none.
func (s *FileSource) ZeroRanges(yield func(off, length uint64) bool) error {
	at, end := int64(s.offset), int64(s.offset+s.size)
	fd := int(s.f.Fd())
	for at < end {
		hole, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO) || err == nil && hole >= end {
			return nil
		} else if err != nil {
			return &Error{Op: "look for holes", Err: err}
		}
		data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			// Nothing but a hole up to the end of the file, which must still
			// reach as far as the image does: beyond it there is no hole.
			info, err := s.f.Stat()
			if err == nil && info.Size() < end {
				err = ErrTruncated
			}
			if err != nil {
				return &Error{Op: "look for holes", Err: err}
			}
			data = end
		} else if err != nil {
			return &Error{Op: "look for holes", Err: err}
		}
		from := (uint64(hole) - s.offset + smallPage - 1) &^ (smallPage - 1)
		to := (uint64(min(data, end)) - s.offset) &^ (smallPage - 1)
		if from < to && !yield(from, to-from) {
			return nil
		}
		at = data
	}
	return nil
}
