//go:build linux && amd64

package vfs

import (
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSnapshots bounds what open synthesized files hold of the host's memory,
// all together: a guest with 65 530 areas that opens its maps a thousand times
// would otherwise take gigabytes.
const maxSnapshots = 64 << 20

// snapshots is what is held. Its lock is also held while content is made, so
// that only one is in the making beside those that count.
var snapshots struct {
	mu    sync.Mutex
	bytes int // guarded by mu
}

// take makes content and accounts for it. ENFILE when too much is held.
func take[T any](make func() T, size func(T) int) (content T, held int, err error) {
	snapshots.mu.Lock()
	defer snapshots.mu.Unlock()
	content = make()
	held = size(content)
	if snapshots.bytes+held > maxSnapshots {
		var none T
		return none, 0, unix.ENFILE
	}
	snapshots.bytes += held
	return content, held, nil
}

func release(held int) {
	snapshots.mu.Lock()
	defer snapshots.mu.Unlock()
	snapshots.bytes -= held
}

// bytesFile is a read-only file made of bytes.
type bytesFile struct {
	stat unix.Stat_t
	data []byte
	held int
}

func newBytesFile(st unix.Stat_t, content func() []byte) (File, error) {
	data, held, err := take(content, func(b []byte) int { return len(b) })
	if err != nil {
		return nil, err
	}
	return &bytesFile{stat: st, data: data, held: held}, nil
}

func (f *bytesFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, nil
	}
	return copy(p, f.data[off:]), nil
}
func (f *bytesFile) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }
func (f *bytesFile) Stat() (unix.Stat_t, error)         { return f.stat, nil }
func (f *bytesFile) Size() (int64, error)               { return int64(len(f.data)), nil }

func (f *bytesFile) Close() error {
	release(f.held)
	return nil
}

// listing is an open directory made of names.
type listing struct {
	stat  unix.Stat_t
	names []Name
	held  int
}

func newListing(st unix.Stat_t, list func() []Name) (File, error) {
	names, held, err := take(list, func(names []Name) (size int) {
		for _, n := range names {
			size += 32 + len(n.Name)
		}
		return size
	})
	if err != nil {
		return nil, err
	}
	return &listing{stat: st, names: names, held: held}, nil
}

func (l *listing) ReadAt([]byte, int64) (int, error)  { return 0, unix.EISDIR }
func (l *listing) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }
func (l *listing) Stat() (unix.Stat_t, error)         { return l.stat, nil }

func (l *listing) Close() error {
	release(l.held)
	return nil
}

// ReadDir counts the position in names. EINVAL when buf cannot take the next record.
func (l *listing) ReadDir(buf []byte, off *int64) (n int, err error) {
	const header = 19 // d_ino, d_off, d_reclen, d_type
	for *off >= 0 && *off < int64(len(l.names)) {
		name := l.names[*off]
		size := (header + len(name.Name) + 1 + 7) &^ 7
		if n+size > len(buf) {
			if n == 0 {
				return 0, unix.EINVAL
			}
			break
		}
		rec := buf[n : n+size]
		clear(rec)
		binary.LittleEndian.PutUint64(rec[0:], name.Ino)
		binary.LittleEndian.PutUint64(rec[8:], uint64(*off+1))
		binary.LittleEndian.PutUint16(rec[16:], uint16(size))
		rec[18] = name.Type
		copy(rec[header:], name.Name)
		n += size
		*off++
	}
	return n, nil
}
