package snapfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Open opens a file and all that it needs: its header, region table, index and
// state, and those of each parent, are read and checked, every length and offset of
// them before it is used. Data is checked when it is read, or by Verify.
//
// It takes time and memory for the index, not for the guest's memory or the data.
// Memory is for what has been read and found right: a file of a few bytes that says
// that it has billions of records is refused without room for them.
//
// Errors: ErrForeign, ErrNewer, ErrTruncated, ErrDamaged, ErrLimit; ErrCodec (not
// among OpenOptions.Codecs); ErrParent, with the error of the parent if it has one of
// these, and fs.ErrNotExist if it is missing; ErrRegions and ErrParent if it has
// other regions; those of the file system.
func Open(path string, o OpenOptions) (*File, error) {
	f, err := open(path, o, newCache(o.CacheBytes), 1, nil)
	return f, fileError("open", path, err)
}

// open opens a file, the nth of a chain, that has to be the one named by want.
func open(path string, o OpenOptions, c *cache, nth int, want *ID) (*File, error) {
	src, err := openFile(path)
	if err != nil {
		return nil, err
	}
	f, err := openSource(src, path, o, c, want)
	if err != nil {
		src.close()
		return nil, err
	}
	if f.h.increment() {
		if f.parent, err = openParent(f, o, c, nth+1); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// openFile opens what has to be a regular file.
func openFile(path string) (*fileSource, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is %v", ErrForeign, info.Mode().Type())
	}
	f, err := openToRead(path)
	if err != nil {
		return nil, err
	}
	info, err = f.Stat()
	if err == nil && !info.Mode().IsRegular() { // by now
		err = fmt.Errorf("%w: it is %v", ErrForeign, info.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &fileSource{f, info}, nil
}

func openParent(f *File, o OpenOptions, c *cache, nth int) (*File, error) {
	parent, err := findParent(f, o, c, nth)
	if err == nil {
		if err = sameRegions(f.Regions(), parent.Regions()); err != nil {
			parent.Close()
			err = fileError("open", parent.path, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrParent, err)
	}
	return parent, nil
}

func findParent(f *File, o OpenOptions, c *cache, nth int) (*File, error) {
	if nth > MaxChain {
		return nil, limitf("more than %d files", MaxChain)
	}
	path := ""
	if o.FindParent != nil {
		var err error
		if path, err = o.FindParent(f.path, f.h.parentAt); err != nil {
			return nil, err
		}
	} else {
		local := filepath.FromSlash(f.h.parentAt)
		if !filepath.IsLocal(local) {
			return nil, invalidf("it is recorded as %q, outside of the directory; see OpenOptions.FindParent", f.h.parentAt)
		}
		path = filepath.Join(filepath.Dir(f.path), local)
	}
	parent, err := open(path, o, c, nth, &f.h.parent)
	return parent, fileError("open", path, err)
}

// openSource reads and checks a file but for its parent.
func openSource(src source, path string, o OpenOptions, c *cache, want *ID) (*File, error) {
	size, err := src.length()
	if err != nil {
		return nil, err
	}
	page := make([]byte, min(size, headerSize))
	if _, err := readFull(src, page, 0); err != nil {
		return nil, err
	}
	h, id, err := decodeHeader(page, size)
	if err != nil {
		return nil, err
	}
	if want != nil && id != *want {
		return nil, fmt.Errorf("it is another file by now: its identity is %v, and %v was written against", id, *want)
	}
	codec, err := findCodec(o.Codecs, h.codecID, h.codecName)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, src: src, h: h, id: id, codec: codec, cache: c}
	if f.state, err = readState(src, h); err != nil {
		return nil, err
	}
	if f.tables, err = loadTables(src, h); err != nil {
		return nil, err
	}
	return f, nil
}

func readState(src source, h *header) ([]byte, error) {
	state := make([]byte, h.stateLen) // at most MaxState, and within the file
	if _, err := readFull(src, state, h.stateOff); err != nil {
		return nil, err
	}
	if sum := checksum(state); sum != h.stateCRC {
		return nil, damagedf("the checksum of the state is %#x and should be %#x", sum, h.stateCRC)
	}
	return state, nil
}

// source is the bytes of a file.
type source interface {
	ReadAt(p []byte, off int64) (int, error)
	length() (uint64, error)
	// eachData calls fn for what of [off, off+n) may be something else than zero.
	eachData(off, n uint64, fn func(off, n uint64) error) error
	file() *os.File
	isFile(info os.FileInfo) bool
	close() error
}

// fileSource is a file.
type fileSource struct {
	f    *os.File
	info os.FileInfo // when it was opened
}

func (s *fileSource) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }
func (s *fileSource) file() *os.File                          { return s.f }
func (s *fileSource) isFile(info os.FileInfo) bool            { return os.SameFile(s.info, info) }

func (s *fileSource) length() (uint64, error) {
	info, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	return uint64(info.Size()), nil
}

func (s *fileSource) eachData(off, n uint64, fn func(off, n uint64) error) error {
	return eachData(s.f, off, n, fn)
}

func (s *fileSource) close() error {
	if err := s.f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return err
	}
	return nil
}
