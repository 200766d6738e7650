//go:build linux && amd64

package vfs

import (
	"golang.org/x/sys/unix"
)

// AllocateMode says what Allocate does to the size of a file that ends before the range.
type AllocateMode uint8

// Modes of Allocate.
const (
	GrowSize AllocateMode = iota
	KeepSize
)

// Allocate is fallocate(2): what is written to the range later finds room there. ENOSPC
// where there is none, and then nothing has changed but for room that stays the file's;
// EFBIG, EPERM.
func (f *TmpFile) Allocate(off, length int64, mode AllocateMode) error {
	fs := f.node.fs
	fs.mu.Lock()
	end := off + length
	size := f.node.sizeLocked()
	grows := mode == GrowSize && end > size
	switch {
	case end > maxTmpSize:
		fs.mu.Unlock()
		return unix.EFBIG
	case f.node.seals&unix.F_SEAL_GROW != 0 && grows:
		fs.mu.Unlock()
		return unix.EPERM
	}
	got, err := f.node.reserveLocked(off, length)
	if err == nil && got < length {
		err = unix.ENOSPC
	}
	f.node.touchLocked()
	pages := f.node.pages
	if err == nil && grows && pages == nil {
		f.node.size = end
	}
	fs.mu.Unlock()
	if err == nil && grows && pages != nil {
		err = pages.Truncate(end)
	}
	return err
}

// PunchHole makes a range read as zero, and gives back the room of what no page cache is
// over. EPERM.
func (f *TmpFile) PunchHole(off, length int64) error {
	fs := f.node.fs
	fs.mu.Lock()
	if f.node.seals&sealedWrites != 0 {
		fs.mu.Unlock()
		return unix.EPERM
	}
	f.node.touchLocked()
	length = min(length, max(f.node.sizeLocked()-off, 0))
	if pages := f.node.pages; pages != nil {
		fs.mu.Unlock()
		return zeroPages(pages, off, length)
	}
	defer fs.mu.Unlock()
	for end := off + length; off < end; {
		index, at := off/chunkSize, off%chunkSize
		n := min(chunkSize-at, end-off)
		if chunk := f.node.chunks[index]; chunk != nil && n == chunkSize {
			delete(f.node.chunks, index)
			fs.used -= chunkSize
		} else if chunk != nil {
			clear(chunk[at : at+n])
		}
		off += n
	}
	return nil
}

// zeroPages stores zeroes, a chunk at a time: whoever has the file mapped sees them.
func zeroPages(pages Pages, off, length int64) error {
	zeroes := make([]byte, min(length, chunkSize))
	for length > 0 {
		n, err := pages.WriteAt(zeroes[:min(length, chunkSize)], off)
		if n == 0 {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}
