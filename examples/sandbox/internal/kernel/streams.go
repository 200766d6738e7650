//go:build linux && amd64

package kernel

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// openStreams gives the first program its descriptors 0 to 2: the sandbox's, as
// far as they are open, or what the options say.
func (k *Kernel) openStreams(files *fdTable) {
	for fd := range 3 {
		o, ok := vfs.HostStream(fd)
		switch {
		case fd == 0 && k.Stdin != nil:
			o, ok = k.Stdin.Ref(), true
			o.SetState(vfs.OpenState{})
		case fd > 0 && k.Unseen:
			o, ok = vfs.NewOpen(discarded{}, "", unix.O_WRONLY), true
		}
		if ok {
			files.slots[fd] = slot{open: o}
		}
	}
}

// discarded is a stream that takes everything.
type discarded struct{}

func (discarded) ReadAt([]byte, int64) (int, error)      { return 0, unix.EBADF }
func (discarded) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (discarded) Close() error                           { return nil }
func (discarded) Stat() (st unix.Stat_t, err error) {
	err = unix.Stat(os.DevNull, &st)
	return st, err
}
