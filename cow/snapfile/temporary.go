package snapfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/guestmm/guestmm/internal/inject"
)

// A temporary is named .guestmm-<16 hex digits>.snaptmp. Its writer holds a lock
// (flock) on it for as long as it lives, which the kernel lets go of when a process
// ends, however it does: so a temporary that can be locked belongs to nobody.
const (
	tempPrefix = ".guestmm-"
	tempSuffix = ".snaptmp"
	tempRandom = 8 // bytes
)

// Points where calls can be made to fail.
var (
	atCreate  = inject.New("snapfile: create")
	atLock    = inject.New("snapfile: lock")
	atWrite   = inject.New("snapfile: write")
	atSync    = inject.New("snapfile: fsync")
	atRename  = inject.New("snapfile: rename")
	atSyncDir = inject.New("snapfile: fsync directory")
)

// onStep, if set, is told of each step before it is taken: tests kill the
// process there.
var onStep func(name string)

func step(p *inject.Point) error {
	if onStep != nil {
		onStep(p.Name())
	}
	return p.Err()
}

// temporary is a file that is being written. write is safe for concurrent use,
// the rest is for one goroutine.
type temporary struct {
	f    *os.File
	name string // empty once it is gone, or is the file itself
}

// createTemporary makes one and locks it. Between the two somebody who cleans up
// may take it for stale: then another is made.
func createTemporary(dir string) (*temporary, error) {
	for range 100 {
		t, err := tryTemporary(dir)
		if t != nil || err != nil {
			return t, err
		}
	}
	return nil, fmt.Errorf("create a temporary: %s has others removed as fast as they come", dir)
}

func tryTemporary(dir string) (*temporary, error) {
	if err := step(atCreate); err != nil {
		return nil, outputError("create a temporary", err)
	}
	var random [tempRandom]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, tempPrefix+hex.EncodeToString(random[:])+tempSuffix)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, outputError("create a temporary", err)
	}
	t := &temporary{f, name}
	err = step(atLock)
	locked := false
	if err == nil {
		locked, err = tryLock(f)
	}
	switch {
	case err != nil:
		t.discard()
		return nil, outputError("lock the temporary", err)
	case !locked || !isStill(name, f):
		t.discard()
		return nil, nil
	}
	return t, nil
}

// isStill reports whether name is that of f.
func isStill(name string, f *os.File) bool {
	there, err := os.Lstat(name)
	if err != nil {
		return false
	}
	mine, err := f.Stat()
	return err == nil && os.SameFile(there, mine)
}

func (t *temporary) write(p []byte, off uint64) error {
	if len(p) == 0 {
		return nil
	}
	if err := step(atWrite); err != nil {
		return outputError("write", err)
	}
	if _, err := t.f.WriteAt(p, int64(off)); err != nil {
		return outputError("write", err)
	}
	startWriteback(t.f, off, uint64(len(p)))
	return nil
}

// commit makes it the file at path.
func (t *temporary) commit(path string, sync SyncPolicy) error {
	if sync == SyncAll {
		err := step(atSync)
		if err == nil {
			err = t.f.Sync()
		}
		if err != nil {
			return outputError("fsync", err)
		}
	}
	err := step(atRename)
	if err == nil {
		err = os.Rename(t.name, path)
	}
	if err != nil {
		return outputError("rename", err)
	}
	t.name = ""
	if sync == SyncAll {
		err = step(atSyncDir)
		if err == nil {
			err = syncDirectory(filepath.Dir(path))
		}
		if err != nil {
			return outputError("fsync the directory; the file is there, and may not outlive a loss of power", err)
		}
	}
	return nil
}

// discard lets go of it, and removes what has not become the file. It is
// harmless after commit.
func (t *temporary) discard() {
	if t.name != "" {
		os.Remove(t.name) // while it is locked: nobody else's bears that name
		t.name = ""
	}
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
}

// RemoveStale removes the temporaries of a directory whose writers have ended
// without removing them, and returns how many that were: a process that was
// killed in the middle of Write leaves one, named .guestmm-<16 hex digits>.snaptmp.
// Write does the same for the directory that it writes to. Those of writers that
// live are left alone, whatever process they are in.
//
// On systems other than Linux it does nothing.
//
// Errors: those of reading the directory, and of removing.
func RemoveStale(dir string) (int, error) {
	n, err := removeStale(dir)
	return n, fileError("remove stale files of", dir, err)
}

func removeStale(dir string) (n int, err error) {
	names, err := filepath.Glob(filepath.Join(globEscape(dir), tempPrefix+"*"+tempSuffix))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, name := range names {
		random, _ := strings.CutPrefix(filepath.Base(name), tempPrefix)
		random, _ = strings.CutSuffix(random, tempSuffix)
		if b, err := hex.DecodeString(random); err != nil || len(b) != tempRandom {
			continue
		}
		removed, err := removeIfStale(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		if removed {
			n++
		}
	}
	return n, errors.Join(errs...)
}

// removeIfStale removes a temporary that nobody has locked. While it holds the
// lock the name cannot come to mean another file but by somebody who has nothing
// to do with this: isStill.
func removeIfStale(name string) (bool, error) {
	if info, err := os.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	f, err := openNoFollow(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if locked, err := tryLock(f); err != nil || !locked || !isStill(name, f) {
		return false, err
	}
	return true, os.Remove(name)
}

var globSpecial = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func globEscape(path string) string {
	if os.PathSeparator == '\\' {
		return path
	}
	return globSpecial.Replace(path)
}
