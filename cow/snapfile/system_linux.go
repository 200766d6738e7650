package snapfile

import (
	"errors"
	"os"

	"github.com/guestmm/guestmm/internal/sys"
	"golang.org/x/sys/unix"
)

// tryLock locks a file, or returns false if somebody else has it. (flock)
func tryLock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, err
		}
	}
}

// openNoFollow opens a file for locking. A pipe does not make it wait, and a
// symbolic link is an error.
func openNoFollow(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// openToRead opens a file. A pipe or device in its place does not make it wait.
func openToRead(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// startWriteback has the disk begin, so that it is busy while the next pieces are
// made, and fsync finds little left. It is a hint, and its failure none.
// (sync_file_range, Linux 2.6.17)
func startWriteback(f *os.File, off, n uint64) {
	_ = unix.SyncFileRange(int(f.Fd()), int64(off), int64(n), unix.SYNC_FILE_RANGE_WRITE)
}

// syncDirectory has the names of a directory reach the disk.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // a file system that has no such thing
		return err
	}
	return nil
}

// eachData calls fn for what of a part of a file is no hole.
func eachData(f *os.File, off, n uint64, fn func(off, n uint64) error) error {
	return sys.EachData(f, off, n, fn)
}
