//go:build linux && amd64

package vfs

import "golang.org/x/sys/unix"

// TmpFile is an open regular file of a Tmpfs.
type TmpFile struct{ node *tmpNode }

func (f *TmpFile) Stat() (unix.Stat_t, error) { return f.node.status(), nil }

func (f *TmpFile) Size() (int64, error) {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	return f.node.sizeLocked(), nil
}

func (f *TmpFile) Close() error {
	f.node.fs.mu.Lock()
	defer f.node.fs.unlock()
	f.node.opens--
	f.node.reapLocked()
	return nil
}

func (f *TmpFile) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	f.node.fs.mu.Lock()
	if c := f.node.pages; c != nil {
		f.node.fs.mu.Unlock()
		return readCached(c, p, off)
	}
	defer f.node.fs.mu.Unlock()
	if off >= f.node.size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.node.size-off)]
	f.node.readLocked(p, off)
	return len(p), nil
}

// WriteAt writes what fits: ENOSPC only if that is nothing.
func (f *TmpFile) WriteAt(p []byte, off int64) (n int, err error) {
	fs := f.node.fs
	fs.mu.Lock()
	if p, err = f.mayWriteLocked(p, off); err != nil || len(p) == 0 {
		fs.mu.Unlock()
		return 0, err
	}
	if c := f.node.pages; c != nil {
		// The room is the file's from now on: writing back finds it there.
		length, err := f.node.reserveLocked(off, int64(len(p)))
		f.node.touchLocked()
		fs.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if n, err = c.WriteAt(p[:length], off); n > 0 {
			err = nil
		}
		return n, err
	}
	defer fs.mu.Unlock()
	n, err = f.node.writeLocked(p, off)
	if n > 0 {
		f.node.size = max(f.node.size, off+int64(n))
		f.node.touchLocked()
		err = nil
	}
	return n, err
}

// mayWriteLocked returns what of p may be written. EFBIG, EPERM.
func (f *TmpFile) mayWriteLocked(p []byte, off int64) ([]byte, error) {
	if off < 0 || off > maxTmpSize-int64(len(p)) {
		return nil, unix.EFBIG
	}
	if f.node.seals&sealedWrites != 0 {
		return nil, unix.EPERM
	}
	if f.node.seals&unix.F_SEAL_GROW != 0 {
		// What lies within is written, and the rest refused.
		size := f.node.sizeLocked()
		if off >= size && len(p) > 0 {
			return nil, unix.EPERM
		}
		p = p[:min(int64(len(p)), size-off)]
	}
	return p, nil
}

// Truncate sets the size: what lies behind it reads as zero should it grow again.
func (f *TmpFile) Truncate(size int64) error {
	fs := f.node.fs
	fs.mu.Lock()
	if err := f.mayCutLocked(size); err != nil {
		fs.mu.Unlock()
		return err
	}
	f.node.touchLocked()
	if c := f.node.pages; c != nil {
		fs.mu.Unlock()
		return c.Truncate(size)
	}
	defer fs.mu.Unlock()
	f.node.cutLocked(size)
	f.node.size = size
	return nil
}

// mayCutLocked says whether a file may have a size. EINVAL, EFBIG, EPERM.
func (f *TmpFile) mayCutLocked(size int64) error {
	was := f.node.sizeLocked()
	switch {
	case size < 0:
		return unix.EINVAL
	case size > maxTmpSize:
		return unix.EFBIG
	case f.node.seals&unix.F_SEAL_SHRINK != 0 && size < was, f.node.seals&unix.F_SEAL_GROW != 0 && size > was:
		return unix.EPERM
	}
	return nil
}
