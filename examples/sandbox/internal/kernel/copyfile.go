//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// sysSendfile and sysCopyFileRange copy between files without the guest's
// memory. Both want a source with an offset.
func sysSendfile(t *Task, a args) (uint64, error) {
	return t.copyFile(a[1], a[2], a[0], 0, a[3])
}

func sysCopyFileRange(t *Task, a args) (uint64, error) {
	if a[5] != 0 {
		return 0, unix.EINVAL
	}
	return t.copyFile(a[0], a[1], a[2], a[3], a[4])
}

func (t *Task) copyFile(in, inOffAt, out, outOffAt, count uint64) (done uint64, err error) {
	offs := [2]int64{-1, -1}
	for i, at := range []uint64{inOffAt, outOffAt} {
		if at == 0 {
			continue
		}
		if offs[i], err = get[int64](t, at); err != nil {
			return 0, err
		}
		if offs[i] < 0 {
			return 0, unix.EINVAL
		}
	}
	src, err := t.transfer(in, offs[0])
	if err != nil {
		return 0, err
	}
	defer src.o.Unref()
	dst, err := t.transfer(out, offs[1])
	if err != nil {
		return 0, err
	}
	defer dst.o.Unref()
	if !src.o.CanRead() || !dst.o.CanWrite() {
		return 0, unix.EBADF
	}
	if _, ok := src.o.File.(vfs.Sizer); !ok {
		return 0, unix.EINVAL
	}
	for count = min(count, maxCount); done < count; {
		p := t.bounce(count - done)
		n, err := src.readInto(p)
		if n == 0 || err != nil {
			return partial(done, err)
		}
		for p = p[:n]; len(p) > 0; {
			n, err := dst.writeSome(p, len(p))
			done, p = done+uint64(n), p[n:]
			if err != nil || n == 0 {
				_, _ = src.o.Seek(-int64(len(p)), unix.SEEK_CUR)
				if err == vfs.ErrLimit && done == 0 {
					err = t.tooLong()
				}
				return partial(done, err)
			}
		}
	}
	for i, x := range []*transfer{src, dst} {
		if at := []uint64{inOffAt, outOffAt}[i]; at != 0 {
			if err := put(t, at, x.off); err != nil {
				return 0, err
			}
		}
	}
	return done, nil
}

// readInto reads a file's bytes for the sandbox itself.
func (x *transfer) readInto(p []byte) (n int, err error) {
	if x.off < 0 {
		return x.o.Read(p)
	}
	n, err = x.o.File.ReadAt(p, x.off)
	x.off += int64(n)
	return n, err
}
