//go:build linux && amd64

package kernel

import (
	"context"
	"math"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
)

// procMem is /proc/PID/mem: a process's memory as a file, with its protection.
type procMem struct {
	ctx context.Context // with which nobody is waited for who serves faults
	mm  *mm             // a user
}

// openMem opens it. What the process executes later is not seen.
func (p *Process) openMem() (*vfs.Open, error) {
	m := p.memory()
	if m == nil {
		return nil, unix.ESRCH
	}
	return vfs.NewOpen(&procMem{guestmem.WithoutMonitors(p.k.ctx), m}, "/proc/"+itoa(p.pid)+"/mem", unix.O_RDWR), nil
}

func (f *procMem) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.mm.as.ReadAt(f.ctx, p, gva(uint64(off)))
	return n, memError(n, err)
}

func (f *procMem) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.mm.as.WriteAt(f.ctx, p, gva(uint64(off)))
	return n, memError(n, err)
}

// memError: what is not there cannot be read, and is no bad address of the caller's.
func memError(n int, err error) error {
	if n > 0 || err == nil {
		return nil
	}
	return unix.EIO
}

// Size is that of all there could be.
func (f *procMem) Size() (int64, error) { return math.MaxInt64, nil }

func (f *procMem) Stat() (unix.Stat_t, error) {
	return unix.Stat_t{Ino: 9, Mode: unix.S_IFREG | 0o600, Nlink: 1, Blksize: pageSize}, nil
}

func (f *procMem) Close() error {
	f.mm.release()
	return nil
}
