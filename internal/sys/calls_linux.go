package sys

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/inject"
)

// The system calls of this package, each behind a point where tests let it
// fail. A call that is not here cannot be made to fail: new ones go here.
var (
	atMemfdCreate = inject.New("memfd_create")
	atFtruncate   = inject.New("ftruncate")
	atSeal        = inject.New("fcntl: add seals")
	atMmap        = inject.New("mmap")
	atMunmap      = inject.New("munmap")
	atMadvise     = inject.New("madvise")
	atPopulate    = inject.New("madvise: populate")
	atFallocate   = inject.New("fallocate")
	atPunchHole   = inject.New("fallocate: punch hole")
	atClose       = inject.New("close")
)

func memfdCreate(name string, flags int) (int, error) {
	if err := atMemfdCreate.Err(); err != nil {
		return -1, err
	}
	return unix.MemfdCreate(name, flags)
}

func ftruncate(fd int, length int64) error {
	if err := atFtruncate.Err(); err != nil {
		return err
	}
	return unix.Ftruncate(fd, length)
}

func addSeals(fd uintptr, seals int) error {
	if err := atSeal.Err(); err != nil {
		return err
	}
	_, err := unix.FcntlInt(fd, unix.F_ADD_SEALS, seals)
	return err
}

func mmap(fd int, off int64, length, prot, flags int) ([]byte, error) {
	if err := atMmap.Err(); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, off, length, prot, flags)
}

func munmap(b []byte) error {
	if err := atMunmap.Err(); err != nil {
		return err
	}
	return unix.Munmap(b)
}

func madvise(b []byte, advice int) error {
	at := atMadvise
	if advice == unix.MADV_POPULATE_WRITE || advice == unix.MADV_POPULATE_READ {
		at = atPopulate
	}
	if err := at.Err(); err != nil {
		return err
	}
	return unix.Madvise(b, advice)
}

func fallocate(fd int, mode uint32, off, n int64) error {
	at := atFallocate
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		at = atPunchHole
	}
	if err := at.Err(); err != nil {
		return err
	}
	return unix.Fallocate(fd, mode, off, n)
}

// closeFile closes f also where it is made to fail, as the kernel does.
func closeFile(f *os.File) error {
	err := f.Close()
	if injected := atClose.Err(); injected != nil {
		return injected
	}
	return err
}
