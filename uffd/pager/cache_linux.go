package pager

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A Cache holds the pages of one image for all guests of ModeContinue: a memfd
// that starts empty. A page is read from the source once, written to the file
// by pwrite(2), which needs no mapping and fails with an error where the host
// has no memory, and mapped into each guest that wants it.
//
// A Cache is made from its source and is the only key to its pages: an offset
// means nothing without it, and so guests of two images cannot meet.
//
// It is safe for concurrent use.
type Cache struct {
	source Source
	file   *os.File
	pages  *pages

	mu     sync.Mutex
	filled sync.Cond // a page has been settled or given back
	closed bool      // guarded by mu
}

// NewCache makes an empty cache of an image.
//
// Huge pages are advised against: with them KVM maps 2 MiB round one page that
// is there, and the guest reads zeroes beside it.
//
// Errors: those of memfd_create(2) and ftruncate(2). Linux 3.17.
func NewCache(s Source) (*Cache, error) {
	if err := checkSize(s.Size()); err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("guestmm-cache", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, &Error{Op: "make a cache", Err: err}
	}
	c := &Cache{source: s, file: os.NewFile(uintptr(fd), "guestmm-cache"), pages: newPages(int(s.Size() / smallPage))}
	c.filled.L = &c.mu
	if err := unix.Ftruncate(fd, int64(s.Size())); err != nil {
		c.file.Close()
		return nil, &Error{Op: "make a cache", Err: err}
	}
	// A guest that could change the length would turn others' pages into
	// SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		c.file.Close()
		return nil, &Error{Op: "seal a cache", Err: err}
	}
	return c, nil
}

// Size returns the length of the image.
func (c *Cache) Size() uint64 { return c.source.Size() }

// ReadOnly opens the cache's file once more, for reading: what a guest's
// process maps, MAP_PRIVATE. A mapping of it cannot be made shared and
// writable, so that no guest can reach another through it. The caller closes
// it. Mappings need MADV_NOHUGEPAGE.
func (c *Cache) ReadOnly() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, &Error{Op: "open a cache", Err: ErrClosed}
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", c.file.Fd()))
	if err != nil {
		return nil, &Error{Op: "open a cache", Err: err}
	}
	return f, nil
}

// Missing returns how many pages have not been read yet.
func (c *Cache) Missing() uint64 { return uint64(c.pages.unsettled.Load()) }

// has reports whether the pages of [off, off+length) are there.
func (c *Cache) has(off, length uint64) bool {
	for i := off / smallPage; i < (off+length)/smallPage; i++ {
		if c.pages.at(int(i))&stateMask != present {
			return false
		}
	}
	return true
}

// fetch returns when the pages of [off, off+len(buf)) are there; buf is room to
// read them. read reads from the source. Pages that another goroutine reads are
// waited for.
func (c *Cache) fetch(ctx context.Context, buf []byte, off uint64, read func(ctx context.Context, p []byte, off uint64) error) error {
	first, end := int(off/smallPage), int((off+uint64(len(buf)))/smallPage)
	for i := first; i < end; {
		switch c.pages.claim(i) {
		case present:
			i++
			continue
		case filling:
			if err := c.wait(ctx, i); err != nil {
				return err
			}
			continue // settled, or given back: then it is ours to read
		}
		j := i + 1
		for j < end && c.pages.claim(j) == absent {
			j++
		}
		err := c.readClaimed(ctx, buf[(i-first)*smallPage:(j-first)*smallPage], i, j, read)
		if err != nil {
			return err
		}
		i = j
	}
	return nil
}

// readClaimed reads pages [i, j), which the caller has claimed. The claims end
// whatever happens, a panic of the source included.
func (c *Cache) readClaimed(ctx context.Context, p []byte, i, j int, read func(context.Context, []byte, uint64) error) error {
	done := false
	defer func() {
		for k := i; k < j; k++ {
			if done {
				c.pages.settle(k, 0)
			} else {
				c.pages.giveBack(k)
			}
		}
		c.mu.Lock()
		c.filled.Broadcast()
		c.mu.Unlock()
	}()
	if err := read(ctx, p, uint64(i)*smallPage); err != nil {
		return err
	}
	if err := c.write(p, int64(i)*smallPage); err != nil {
		return &Error{Op: "write to the cache", Err: err}
	}
	done = true
	return nil
}

func (c *Cache) write(p []byte, off int64) error {
	_, err := c.file.WriteAt(p, off)
	return err
}

// wait returns once somebody else's claim on page i has ended.
func (c *Cache) wait(ctx context.Context, i int) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		c.filled.Broadcast()
		c.mu.Unlock()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.pages.at(i)&stateMask == filling {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.filled.Wait()
	}
	return nil
}

// Close gives the cache's descriptor up. Guests that map the file keep what
// they have; no more pages are read.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.file.Close()
}
