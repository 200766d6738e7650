package snapfile

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

const defaultCacheBytes = 4 << 20

// cache keeps chunks that were checked and decoded, for the files of a chain. A
// chunk that several want at once is read once. Its mutex is innermost and is held
// for list operations alone, never while anybody reads.
type cache struct {
	most uint64 // bytes to keep; immutable

	mu    sync.Mutex
	byKey map[cacheKey]*cached // mu
	order list.List            // of *cached, the latest first; mu
	kept  uint64               // bytes of those in order; mu
	free  [][]byte             // buffers that nobody uses; mu
}

type cacheKey struct {
	f     *File
	chunk uint32
}

// cached is a chunk in the cache, or being read.
type cached struct {
	key   cacheKey
	data  []byte        // immutable once ready is closed
	err   error         // immutable once ready is closed
	ready chan struct{} // closed when it has been read
	users int           // mu
	in    *list.Element // nil: not kept, and data goes with the last user; mu
}

func newCache(most uint64) *cache {
	if most == 0 {
		most = defaultCacheBytes
	}
	return &cache{most: most, byKey: make(map[cacheKey]*cached)}
}

// get returns a chunk of size bytes, which load reads if it is not there. Who gets
// one calls put when done with it. An error is for those who waited for that
// very read: the next one tries again.
func (c *cache) get(ctx context.Context, key cacheKey, size uint64, load func(p []byte) error) (*cached, error) {
	c.mu.Lock()
	e := c.byKey[key]
	if e != nil {
		e.users++
		if e.in != nil {
			c.order.MoveToFront(e.in)
		}
		c.mu.Unlock()
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.put(e)
			return nil, ctx.Err()
		}
		if e.err != nil {
			c.put(e)
			return nil, e.err
		}
		return e, nil
	}
	e = &cached{key: key, ready: make(chan struct{}), users: 1, data: c.bufferLocked(size)}
	c.byKey[key] = e
	c.mu.Unlock()
	c.load(e, load)
	if e.err != nil {
		c.put(e)
		return nil, e.err
	}
	return e, nil
}

// errPanicked is for those who waited for a read that panicked, such as in a codec.
var errPanicked = errors.New("the read of a chunk has panicked")

func (c *cache) load(e *cached, load func(p []byte) error) {
	e.err = errPanicked
	defer c.loaded(e)
	e.err = load(e.data)
}

// tryGet is get of what is there already.
func (c *cache) tryGet(key cacheKey) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[key]
	if e == nil || e.in == nil { // in the list is what was read without an error
		return nil
	}
	e.users++
	c.order.MoveToFront(e.in)
	return e
}

// loaded takes a chunk in, or forgets that it could not be read.
func (c *cache) loaded(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.err != nil {
		delete(c.byKey, e.key)
	} else {
		e.in = c.order.PushFront(e)
		c.kept += uint64(len(e.data))
		c.evictLocked()
	}
	close(e.ready)
}

func (c *cache) evictLocked() {
	for c.kept > c.most {
		old := c.order.Remove(c.order.Back()).(*cached)
		old.in = nil
		delete(c.byKey, old.key)
		c.kept -= uint64(len(old.data))
		if old.users == 0 {
			c.recycleLocked(old)
		}
	}
}

func (c *cache) put(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.users--; e.users == 0 && e.in == nil {
		c.recycleLocked(e)
	}
}

// freeBuffers is how many buffers wait for the next chunk.
const freeBuffers = 4

func (c *cache) recycleLocked(e *cached) {
	if len(c.free) < freeBuffers {
		c.free = append(c.free, e.data)
	}
	e.data = nil
}

func (c *cache) bufferLocked(size uint64) []byte {
	for i := len(c.free) - 1; i >= 0; i-- {
		if b := c.free[i]; uint64(cap(b)) >= size {
			c.free = append(c.free[:i], c.free[i+1:]...)
			return b[:size]
		}
	}
	return make([]byte, size)
}
