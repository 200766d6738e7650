//go:build linux

package pager

import (
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapShared maps a ledger's file: ordinary shared memory, which no userfaultfd
// ever serves. size is that of the file, a multiple of 4, which is sealed.
func mapShared(f *os.File, size uint64) (*shared, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	// The page that the kernel writes events to is to be there. That it cannot
	// be locked is no reason to refuse: it has just been written.
	_ = unix.Mlock(mem[:sharedHead])
	// SAFETY: mem is a mapping of size bytes on a page boundary, so that every
	// word is aligned. It stays until nothing refers to s: whoever holds words
	// holds s, by pages.in.
	words := unsafe.Slice((*atomic.Uint32)(unsafe.Pointer(&mem[0])), size/4)
	s := &shared{mem: mem, words: words, reading: &words[sharedReadingAt/4], moved: &words[sharedMovedAt/4]}
	runtime.AddCleanup(s, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return s, nil
}
