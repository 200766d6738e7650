//go:build linux && amd64

package vfs

import "golang.org/x/sys/unix"

// OpenState is what a description has of its own: what its file has is not in it.
type OpenState struct {
	off   int64
	flags uint32
}

// State returns the description's offset and flags.
func (o *Open) State() OpenState {
	o.mu.Lock()
	defer o.mu.Unlock()
	return OpenState{o.off, o.flags.Load()}
}

// SetState gives a description the offset and flags that it had.
func (o *Open) SetState(s OpenState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off = s.off
	o.flags.Store(s.flags)
}

// NewBytes returns a description of a file that holds data and cannot be written,
// at its beginning.
func NewBytes(data []byte) *Open {
	st := unix.Stat_t{Mode: unix.S_IFREG | 0o400, Nlink: 1, Size: int64(len(data)), Blksize: 4096}
	return NewOpen(&bytesFile{stat: st, data: data}, "", unix.O_RDONLY)
}
