package pager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// WorkingSetSuffix is what the name of a snapshot file is followed by in the
// name of its working set.
const WorkingSetSuffix = ".workingset"

// loadWorkingSet reads the set of an image from a file. One that is not there
// is no error, and none.
//
// Errors: ErrWorkingSet; ErrWrongImage; those of the file.
func loadWorkingSet(path string, image Identity, nPages uint64) (*WorkingSet, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular(): // opening a pipe might never end
		return nil, &Error{Op: "load " + path, Err: fmt.Errorf("%w: not a regular file", ErrWorkingSet)}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ws, err := ReadWorkingSet(f)
	if err == nil {
		err = ws.check(image, nPages)
	}
	if err != nil {
		return nil, &Error{Op: "load " + path, Err: err}
	}
	return ws, nil
}

// saveWorkingSet replaces the file of a set as a whole: who reads it meanwhile
// reads the old one or the new one. A host that loses its power may lose both,
// which costs a recording.
func saveWorkingSet(path string, ws *WorkingSet) (err error) {
	dir, pattern := filepath.Dir(path), "."+filepath.Base(path)+"-*"
	removeStale(dir, pattern)
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = ws.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// staleAfter is when a file that should become a set is nobody's any more: writing
// one takes milliseconds.
const staleAfter = time.Minute

// removeStale removes what processes have left that were killed while they saved.
func removeStale(dir, pattern string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if ok, _ := filepath.Match(pattern, e.Name()); !ok {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > staleAfter {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
