//go:build linux && amd64

package kernel

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
)

// maxObjects bounds the files whose pages are kept while nobody maps them.
const maxObjects = 64

// objectCache keeps one Object per file, so that a shell that runs busybox a
// hundred times reads it once and all its processes share the frames. A file
// that has changed has another key.
type objectCache struct {
	mem *guestmem.Memory // immutable

	mu      sync.Mutex
	entries map[objectKey]*cachedObject // guarded by mu
	tick    uint64                      // guarded by mu
}

type objectKey struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

type cachedObject struct {
	obj  *guestmem.Object
	held int    // callers between get and release
	used uint64 // tick of the last get
}

// get returns the Object of a host file. It stays open until release, and
// what has been mapped of it by then stays mapped.
func (c *objectCache) get(f *vfs.HostFile, name string) (obj *guestmem.Object, release func(), err error) {
	st := f.Info()
	key := objectKey{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		if e, err = c.addLocked(key, f, name); err != nil {
			return nil, nil, err
		}
	}
	c.tick++
	e.used = c.tick
	e.held++
	return e.obj, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.held--
	}, nil
}

func (c *objectCache) addLocked(key objectKey, f *vfs.HostFile, name string) (*cachedObject, error) {
	// A descriptor of the object's own. Pages are read from it for as long as
	// anything maps the object, which only the garbage collector can tell: the
	// file's cleanup closes it.
	src, err := f.Dup()
	if err != nil {
		return nil, err
	}
	obj, err := c.mem.NewFileObject(src, key.size, name)
	if err != nil {
		src.Close()
		return nil, err
	}
	if len(c.entries) >= maxObjects {
		c.evictLocked(1)
	}
	if c.entries == nil {
		c.entries = make(map[objectKey]*cachedObject)
	}
	e := &cachedObject{obj: obj}
	c.entries[key] = e
	return e, nil
}

// evictLocked drops the n entries that were used least recently and reports
// whether there were any to drop.
func (c *objectCache) evictLocked(n int) (dropped bool) {
	for range n {
		var oldest objectKey
		var found *cachedObject
		for key, e := range c.entries {
			if e.held == 0 && (found == nil || e.used < found.used) {
				oldest, found = key, e
			}
		}
		if found == nil {
			break
		}
		found.obj.Close()
		delete(c.entries, oldest)
		dropped = true
	}
	return dropped
}

// shrink drops every file's pages that no area maps; it reports whether there
// may be more memory now.
func (c *objectCache) shrink() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.evictLocked(len(c.entries))
}

// clear is shrink at the end.
func (c *objectCache) clear() { c.shrink() }
