//go:build linux && amd64

package kernel

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// fileLocks are the advisory locks on files: on ranges, whose owner is a table of
// descriptors (fcntl) or a description (its OFD_ commands), and on whole files (flock),
// whose owner is a description.
type fileLocks struct {
	changed vfs.Queue // woken when somebody lets go

	mu     sync.Mutex
	ranges map[fileKey][]rangeLock // guarded by mu
	// waits says whose lock somebody waits for, so that nobody waits for himself;
	// guarded by mu.
	waits map[any]any
}

// fileKey is a file, whatever its name. Locks on ranges and on the whole know nothing of
// each other.
type fileKey struct {
	dev, ino uint64
	whole    bool
}

// rangeLock is one owner's on [start, end).
type rangeLock struct {
	owner      any // *fdTable or *vfs.Open
	pid        int // -1 if the owner is a description
	write      bool
	start, end int64
}

func (l rangeLock) overlaps(o rangeLock) bool { return l.start < o.end && o.start < l.end }

// patience says what becomes of who finds a lock in the way.
type patience uint8

const (
	atOnce patience = iota
	waiting
)

func newFileLocks() *fileLocks {
	return &fileLocks{ranges: make(map[fileKey][]rangeLock), waits: make(map[any]any)}
}

func keyOf(o *vfs.Open, whole bool) (fileKey, error) {
	st, err := o.File.Stat()
	return fileKey{st.Dev, st.Ino, whole}, err
}

// conflictLocked returns the first lock of somebody else's that is in the way.
func (f *fileLocks) conflictLocked(key fileKey, want rangeLock) (rangeLock, bool) {
	for _, l := range f.ranges[key] {
		if l.owner != want.owner && l.overlaps(want) && (l.write || want.write) {
			return l, true
		}
	}
	return rangeLock{}, false
}

// hasOtherLocked reports whether the owner has a lock of the other kind.
func (f *fileLocks) hasOtherLocked(key fileKey, want rangeLock) bool {
	for _, l := range f.ranges[key] {
		if l.owner == want.owner && l.write != want.write {
			return true
		}
	}
	return false
}

// get returns what is in the way of a lock.
func (f *fileLocks) get(key fileKey, want rangeLock) (rangeLock, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conflictLocked(key, want)
}

// set gives an owner a lock in place of what it has of the range. EAGAIN, ENOLCK; EDEADLK,
// to who is to wait, where the one in the way waits for him.
func (f *fileLocks) set(key fileKey, want rangeLock, how patience) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waits, want.owner)
	if key.whole && f.hasOtherLocked(key, want) {
		// flock gives up what it has before it asks for something else: two who
		// share a lock and want it alone would wait for each other.
		f.cutLocked(key, want)
		f.changed.Wake()
	}
	if l, found := f.conflictLocked(key, want); found {
		if how == atOnce {
			return unix.EAGAIN
		}
		if _, isProcess := want.owner.(*fdTable); !isProcess {
			return unix.EAGAIN // of those of descriptions nobody keeps account
		}
		for next, steps := l.owner, 0; next != nil && steps < 64; next, steps = f.waits[next], steps+1 {
			if next == want.owner {
				return unix.EDEADLK
			}
		}
		f.waits[want.owner] = l.owner
		return unix.EAGAIN
	}
	const most = 4096
	if len(f.ranges[key]) >= most {
		return unix.ENOLCK
	}
	f.cutLocked(key, want)
	f.ranges[key] = append(f.ranges[key], want)
	f.changed.Wake() // a lock for writing may have become one for reading
	return nil
}

// unset takes a range from what an owner has.
func (f *fileLocks) unset(key fileKey, which rangeLock) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutLocked(key, which)
	f.changed.Wake()
}

func (f *fileLocks) cutLocked(key fileKey, cut rangeLock) {
	kept := make([]rangeLock, 0, len(f.ranges[key])+1)
	for _, l := range f.ranges[key] {
		if l.owner != cut.owner || !l.overlaps(cut) {
			kept = append(kept, l)
			continue
		}
		if l.start < cut.start {
			head := l
			head.end = cut.start
			kept = append(kept, head)
		}
		if l.end > cut.end {
			tail := l
			tail.start = cut.end
			kept = append(kept, tail)
		}
	}
	if f.ranges[key] = kept; len(kept) == 0 {
		delete(f.ranges, key)
	}
}

// drop takes all that an owner has: of one file, or of any.
func (f *fileLocks) drop(owner any, of func(fileKey) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waits, owner)
	for key := range f.ranges {
		if of(key) {
			f.cutLocked(key, rangeLock{owner: owner, end: math.MaxInt64})
		}
	}
	f.changed.Wake()
}

// stopWaiting says that an owner waits no more.
func (f *fileLocks) stopWaiting(owner any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waits, owner)
}

// lock is set that may wait.
func (t *Task) lock(key fileKey, want rangeLock, how patience) error {
	f := t.k.locks
	for ready := make(chan struct{}, 1); ; {
		stop := f.changed.Watch(ready)
		err := f.set(key, want, how)
		if err == unix.EAGAIN && how == waiting {
			err = t.sleep(ready, nil)
			if stop(); err == nil {
				continue
			}
			f.stopWaiting(want.owner)
			return err
		}
		stop()
		return err
	}
}

// flockArg is struct flock.
type flockArg struct {
	Type, Whence int16
	_            int32
	Start, Len   int64
	PID          int32
	_            int32
}

// rangeOf is what a struct flock asks for. EINVAL, EOVERFLOW.
func (a *flockArg) rangeOf(o *vfs.Open) (start, end int64, err error) {
	base := int64(0)
	switch a.Whence {
	case unix.SEEK_SET:
	case unix.SEEK_CUR:
		base, _ = o.Seek(0, unix.SEEK_CUR)
	case unix.SEEK_END:
		st, err := o.File.Stat()
		if err != nil {
			return 0, 0, err
		}
		base = st.Size
	default:
		return 0, 0, unix.EINVAL
	}
	if a.Start > math.MaxInt64-base {
		return 0, 0, unix.EOVERFLOW
	}
	start = base + a.Start
	switch {
	case a.Len == 0:
		end = math.MaxInt64
	case a.Len < 0:
		start, end = start+a.Len, start
	case a.Len > math.MaxInt64-max(start, 0):
		return 0, 0, unix.EOVERFLOW
	default:
		end = start + a.Len
	}
	if start < 0 {
		return 0, 0, unix.EINVAL
	}
	return start, end, nil
}

// fcntlLock is fcntl's commands on locks.
func (t *Task) fcntlLock(o *vfs.Open, cmd, at uint64) error {
	arg, err := get[flockArg](t, at)
	if err != nil {
		return err
	}
	l := rangeLock{owner: t.files, pid: t.proc.pid, write: arg.Type == unix.F_WRLCK}
	switch cmd {
	case unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
		if arg.PID != 0 {
			return unix.EINVAL
		}
		l.owner, l.pid = o, -1
	}
	if l.start, l.end, err = arg.rangeOf(o); err != nil {
		return err
	}
	key, err := keyOf(o, false)
	if err != nil {
		return err
	}
	if arg.Type != unix.F_RDLCK && arg.Type != unix.F_WRLCK && arg.Type != unix.F_UNLCK {
		return unix.EINVAL
	}
	if cmd == unix.F_GETLK || cmd == unix.F_OFD_GETLK {
		return t.tellLock(key, l, arg, at)
	}
	switch {
	case arg.Type == unix.F_UNLCK:
		t.k.locks.unset(key, l)
		return nil
	case arg.Type == unix.F_RDLCK && !o.CanRead(), arg.Type == unix.F_WRLCK && !o.CanWrite():
		return unix.EBADF
	}
	t.keepLocks(o, l.owner)
	how := atOnce
	if cmd == unix.F_SETLKW || cmd == unix.F_OFD_SETLKW {
		how = waiting
	}
	return t.lock(key, l, how)
}

// keepLocks has whoever is to own a lock lose it when it closes the file.
func (t *Task) keepLocks(o *vfs.Open, owner any) {
	if f, ok := owner.(*fdTable); ok {
		f.holdsLocks.Store(true)
		return
	}
	if locks := t.k.locks; o.TakeLocks() {
		o.OnClose(func() { locks.drop(o, func(fileKey) bool { return true }) })
	}
}

// tellLock is F_GETLK.
func (t *Task) tellLock(key fileKey, l rangeLock, arg flockArg, at uint64) error {
	if arg.Type == unix.F_UNLCK {
		return unix.EINVAL
	}
	found, ok := t.k.locks.get(key, l)
	if !ok {
		return put(t, at, int16(unix.F_UNLCK)) // l_type; the rest stays
	}
	arg = flockArg{Type: unix.F_RDLCK, Start: found.start, PID: int32(found.pid)}
	if found.write {
		arg.Type = unix.F_WRLCK
	}
	if found.end != math.MaxInt64 {
		arg.Len = found.end - found.start
	}
	return put(t, at, arg)
}

// sysFlock locks a file as a whole.
func sysFlock(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	key, err := keyOf(o, true)
	if err != nil {
		return 0, err
	}
	l := rangeLock{owner: o, pid: -1, end: math.MaxInt64}
	how := waiting
	if a[1]&unix.LOCK_NB != 0 {
		how = atOnce
	}
	switch op := int(int32(a[1])) &^ unix.LOCK_NB; op {
	case unix.LOCK_UN:
		t.k.locks.unset(key, l)
		return 0, nil
	case unix.LOCK_EX, unix.LOCK_SH:
		l.write = op == unix.LOCK_EX
		t.keepLocks(o, o)
		return 0, t.lock(key, l, how)
	}
	return 0, unix.EINVAL
}
