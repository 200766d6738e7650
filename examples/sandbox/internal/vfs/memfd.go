//go:build linux && amd64

package vfs

import "golang.org/x/sys/unix"

const (
	sealedWrites = unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE
	sealExec     = 0x20 // F_SEAL_EXEC: nothing here can be executed anyway
	knownSeals   = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | sealedWrites | sealExec
)

// NewMemfd returns a file without a name, which counts towards the tree's bounds
// until it is closed. ENOSPC.
func (fs *Tmpfs) NewMemfd(sealable bool) (*TmpFile, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.nodes >= maxTmpNodes {
		return nil, unix.ENOSPC
	}
	n := fs.newNodeLocked(unix.S_IFREG | 0o777)
	n.opens = 1
	if sealable {
		n.seals = 0
	}
	return &TmpFile{n}, nil
}

// AddSeals is F_ADD_SEALS: EPERM where no more may be added or the description
// is not for writing, EINVAL for a file that has none, EBUSY for F_SEAL_WRITE while a
// mapping may store to the file.
func (o *Open) AddSeals(seals uint32) error {
	f, ok := o.File.(*TmpFile)
	switch {
	case !ok || seals&^knownSeals != 0:
		return unix.EINVAL
	case !o.CanWrite():
		return unix.EPERM
	}
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	was, pages := f.node.seals, f.node.pages
	if was&unix.F_SEAL_SEAL != 0 {
		return unix.EPERM
	}
	f.node.seals |= seals
	if pages == nil || seals&^was&unix.F_SEAL_WRITE == 0 {
		return nil
	}
	// Sealed first, so that nobody who asks from now on gets another such mapping.
	f.node.fs.mu.Unlock()
	busy := pages.IsStorable()
	f.node.fs.mu.Lock()
	if busy {
		f.node.seals &^= seals &^ was
		return unix.EBUSY
	}
	return nil
}

// Seals is F_GET_SEALS.
func (o *Open) Seals() (uint32, error) {
	f, ok := o.File.(*TmpFile)
	if !ok {
		return 0, unix.EINVAL
	}
	f.node.fs.mu.Lock()
	defer f.node.fs.mu.Unlock()
	return f.node.seals, nil
}
