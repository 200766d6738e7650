//go:build linux && amd64

package vfs

import (
	"io"

	"golang.org/x/sys/unix"
)

// Pages is a page cache over a file: once a file is mapped, whoever reads it, writes
// it or cuts it does so there, and sees what the mappings store. What it holds goes
// back to the file's chunks by the Raw that it was made over.
type Pages interface {
	ReadAt(p []byte, off int64) (int, error) // io.EOF at the end
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Size() int64
	IsStorable() bool // there is a mapping that may store to it
	Close()           // nobody opens the file any more; mappings may go on
}

// Raw is a file's chunks, without what is over them. Its methods are those of a source
// and a sink.
type Raw struct{ node *tmpNode }

// ReadAt reads what is there, and zeroes where nothing is.
func (r Raw) ReadAt(p []byte, off int64) (int, error) {
	r.node.fs.mu.Lock()
	defer r.node.fs.mu.Unlock()
	if off < 0 {
		return 0, unix.EINVAL
	}
	r.node.readLocked(p, off)
	return len(p), nil
}

// WriteAt writes what fits. ENOSPC.
func (r Raw) WriteAt(p []byte, off int64) (int, error) {
	r.node.fs.mu.Lock()
	defer r.node.fs.mu.Unlock()
	return r.node.writeLocked(p, off)
}

// Truncate cuts the chunks.
func (r Raw) Truncate(size int64) error {
	r.node.fs.mu.Lock()
	defer r.node.fs.mu.Unlock()
	r.node.cutLocked(size)
	return nil
}

// Release says that the pages over the chunks are gone.
func (r Raw) Release() {
	r.node.fs.mu.Lock()
	defer r.node.fs.mu.Unlock()
	r.node.mapped = false
	r.node.reapLocked()
}

// Pages returns the file's page cache, which newPages makes when it is first asked for.
func (f *TmpFile) Pages(newPages func(raw Raw, size int64) (Pages, error)) (Pages, error) {
	fs := f.node.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.node.pages == nil {
		p, err := newPages(Raw{f.node}, f.node.size)
		if err != nil {
			return nil, err
		}
		f.node.pages, f.node.mapped = p, true
		fs.paged[f.node] = struct{}{}
	}
	return f.node.pages, nil
}

// MayMapWritable reports whether a shared mapping may ever be written: EPERM to who
// asks for one that is, of a file that is sealed.
func (f *TmpFile) MayMapWritable() bool {
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	return f.node.seals&sealedWrites == 0
}

// ClosePages ends all page caches: the memory that they are made of is to be closed.
func (fs *Tmpfs) ClosePages() {
	fs.mu.Lock()
	for n := range fs.paged {
		fs.endPagesLocked(n)
	}
	fs.unlock()
}

// endPagesLocked has unlock close a file's page cache.
func (fs *Tmpfs) endPagesLocked(n *tmpNode) {
	if n.pages != nil {
		n.size = n.pages.Size()
		fs.ending = append(fs.ending, n.pages)
		n.pages = nil
		delete(fs.paged, n)
	}
}

// unlock unlocks fs, and closes the page caches that nobody needs any more: they
// write back, for which they take the lock.
func (fs *Tmpfs) unlock() {
	ending := fs.ending
	fs.ending = nil
	fs.mu.Unlock()
	for _, p := range ending {
		p.Close()
	}
}

// readCached is ReadAt by the page cache.
func readCached(c Pages, p []byte, off int64) (int, error) {
	n, err := c.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

func (n *tmpNode) readLocked(p []byte, off int64) {
	for done := 0; done < len(p); {
		index, at := (off+int64(done))/chunkSize, (off+int64(done))%chunkSize
		piece := p[done:min(len(p), done+int(chunkSize-at))]
		if chunk := n.chunks[index]; chunk != nil {
			copy(piece, chunk[at:])
		} else {
			clear(piece)
		}
		done += len(piece)
	}
}

// writeLocked writes to the chunks, as far as there is room. ENOSPC.
func (n *tmpNode) writeLocked(p []byte, off int64) (done int, err error) {
	for done < len(p) {
		index, at := (off+int64(done))/chunkSize, (off+int64(done))%chunkSize
		chunk, err := n.chunkLocked(index)
		if err != nil {
			return done, err
		}
		done += copy(chunk[at:], p[done:])
	}
	return done, nil
}

// chunkLocked returns a chunk, which is made if it is not there. ENOSPC.
func (n *tmpNode) chunkLocked(index int64) ([]byte, error) {
	chunk := n.chunks[index]
	if chunk == nil {
		if n.fs.used+chunkSize > n.fs.limit {
			return nil, unix.ENOSPC
		}
		chunk = make([]byte, chunkSize)
		n.chunks[index] = chunk
		n.fs.used += chunkSize
	}
	return chunk, nil
}

// reserveLocked makes the chunks of a range, and returns how many of its bytes have
// one. ENOSPC, if that is none.
func (n *tmpNode) reserveLocked(off, length int64) (int64, error) {
	for at := off / chunkSize * chunkSize; at < off+length; at += chunkSize {
		if _, err := n.chunkLocked(at / chunkSize); err != nil {
			if at <= off {
				return 0, err
			}
			return at - off, nil
		}
	}
	return length, nil
}

// cutLocked takes away what lies behind a size.
func (n *tmpNode) cutLocked(size int64) {
	for index, chunk := range n.chunks {
		switch start := index * chunkSize; {
		case start >= size:
			delete(n.chunks, index)
			n.fs.used -= chunkSize
		case start+chunkSize > size:
			clear(chunk[size-start:])
		}
	}
}

// sizeLocked is the file's size as everybody sees it.
func (n *tmpNode) sizeLocked() int64 {
	if n.pages != nil {
		return n.pages.Size()
	}
	return n.size
}
