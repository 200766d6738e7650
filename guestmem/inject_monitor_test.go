package guestmem

import (
	"bytes"

	"github.com/guestmm/guestmm/uffd"
)

// monitored is a space whose pages a monitor brings, arms and moves, beside a child
// that shares its tables.
func (w *injectWorld) monitored() {
	var m *Monitor
	w.newSpace()
	w.mapPages(0, injPrivate, 6, MapOptions{Prot: rw, Flags: anon})
	w.mapPages(0, injFar, 3, MapOptions{Prot: rw, Flags: anon})
	w.step("a new monitor", func() (err error) {
		m, err = w.spaces[0].NewMonitor(MonitorOptions{Features: uffd.FeatureWPUnpopulated})
		return err
	}, nil)
	if w.dead {
		return
	}
	register := func() {
		w.step("register", func() error {
			_, err := m.Register(injPrivate, 6*page, uffd.Missing|uffd.WP)
			return err
		}, nil)
	}
	register()
	done := uint64(0)
	w.step("install", func() error {
		n, err := m.Copy(injPrivate+offset(done), bytes.Repeat([]byte{9}, int(4*page-done)), 0)
		for end := done + n; done < end; done += page {
			w.model[0][injPrivate+offset(done)] = whole(9)
		}
		return err
	}, nil)
	w.fork(0)
	w.step("arm", func() error { return m.WriteProtect(injPrivate, 6*page, uffd.Armed) }, nil)
	w.step("disarm", func() error { return m.WriteProtect(injPrivate, 6*page, 0) }, nil)
	w.write(0, injPrivate, 2, 3)
	w.write(1, injPrivate, 6, 4)
	w.write(0, injFar, 1, 5)
	w.step("move", func() error {
		_, err := m.Move(injPrivate+4*page, injFar, page, 0)
		return err
	}, func() {
		w.model[0][injPrivate+4*page] = whole(5)
		w.model[0][injFar] = whole(0)
	})
	w.step("poison", func() error {
		_, err := m.Poison(injPrivate+5*page, page, 0)
		return err
	}, nil)
	w.discard(0, injPrivate+4*page, 2)
	w.step("unregister", func() error { return m.Unregister(injPrivate, 6*page) }, nil)
	register() // what may have been left armed is no more
	w.step("close the monitor", m.Close, nil)
	w.write(0, injPrivate, 6, 6)
	w.closeSpace(0)
}
