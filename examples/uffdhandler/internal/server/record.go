//go:build linux

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/guestmm/guestmm/uffd/pager"
)

// A recorder merges what the sessions of this run touched, and keeps a file of
// it.
type recorder struct {
	path string

	mu      sync.Mutex
	set     *pager.WorkingSet // guarded by mu
	unsaved bool              // the file lacks some of set; guarded by mu
}

// add merges the set of one session and writes the file anew. first is what
// was installed before anybody could touch it, so that it is in no recording;
// nil if nothing was.
func (r *recorder) add(set, first *pager.WorkingSet) error {
	if r.path == "" || set == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, base := range []*pager.WorkingSet{first, r.set} {
		if base == nil {
			continue
		}
		merged, err := base.Merge(set)
		if err != nil {
			return fmt.Errorf("record: %w", err)
		}
		set = merged
	}
	r.set, r.unsaved = set, true
	return r.saveLocked()
}

// flush writes what could not be written when it came.
func (r *recorder) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.unsaved {
		return nil
	}
	return r.saveLocked()
}

func (r *recorder) saveLocked() error {
	err := writeSet(r.path, r.set)
	if err == nil {
		r.unsaved = false
	}
	return err
}

// writeSet replaces the file as a whole: whoever reads it finds the old set or
// the new one.
func writeSet(path string, set *pager.WorkingSet) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("record: %w", err)
		}
	}()
	if _, err = set.WriteTo(f); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
