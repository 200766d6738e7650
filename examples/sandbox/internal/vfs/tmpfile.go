//go:build linux && amd64

package vfs

import "golang.org/x/sys/unix"

// TmpFile is an open regular file of a Tmpfs.
type TmpFile struct{ node *tmpNode }

func (f *TmpFile) Stat() (unix.Stat_t, error) { return f.node.status(), nil }

func (f *TmpFile) Size() (int64, error) {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	return f.node.size, nil
}

func (f *TmpFile) Close() error {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	f.node.opens--
	f.node.reapLocked()
	return nil
}

func (f *TmpFile) ReadAt(p []byte, off int64) (n int, err error) {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	if off < 0 {
		return 0, unix.EINVAL
	}
	if off >= f.node.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.node.size-off)]
	for n < len(p) {
		index, at := (off+int64(n))/chunkSize, (off+int64(n))%chunkSize
		piece := p[n:min(len(p), n+int(chunkSize-at))]
		if chunk := f.node.chunks[index]; chunk != nil {
			copy(piece, chunk[at:])
		} else {
			clear(piece)
		}
		n += len(piece)
	}
	return n, nil
}

// WriteAt writes what fits: ENOSPC only if that is nothing.
func (f *TmpFile) WriteAt(p []byte, off int64) (n int, err error) {
	fs := f.node.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if off < 0 || off > maxTmpSize-int64(len(p)) {
		return 0, unix.EFBIG
	}
	if f.node.seals&sealedWrites != 0 {
		return 0, unix.EPERM
	}
	if f.node.seals&unix.F_SEAL_GROW != 0 {
		// What lies within is written, and the rest refused.
		if off >= f.node.size && len(p) > 0 {
			return 0, unix.EPERM
		}
		p = p[:min(int64(len(p)), f.node.size-off)]
	}
	for n < len(p) {
		index, at := (off+int64(n))/chunkSize, (off+int64(n))%chunkSize
		chunk := f.node.chunks[index]
		if chunk == nil {
			if fs.used+chunkSize > fs.limit {
				err = unix.ENOSPC
				break
			}
			chunk = make([]byte, chunkSize)
			f.node.chunks[index] = chunk
			fs.used += chunkSize
		}
		n += copy(chunk[at:], p[n:])
	}
	if n > 0 {
		f.node.size = max(f.node.size, off+int64(n))
		f.node.touchLocked()
		err = nil
	}
	return n, err
}

// Truncate sets the size: what lies behind it reads as zero should it grow again.
func (f *TmpFile) Truncate(size int64) error {
	fs := f.node.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if size < 0 {
		return unix.EINVAL
	}
	if size > maxTmpSize {
		return unix.EFBIG
	}
	if f.node.seals&unix.F_SEAL_SHRINK != 0 && size < f.node.size || f.node.seals&unix.F_SEAL_GROW != 0 && size > f.node.size {
		return unix.EPERM
	}
	for index, chunk := range f.node.chunks {
		switch start := index * chunkSize; {
		case start >= size:
			delete(f.node.chunks, index)
			fs.used -= chunkSize
		case start+chunkSize > size:
			clear(chunk[size-start:])
		}
	}
	f.node.size = size
	f.node.touchLocked()
	return nil
}
