//go:build linux && amd64

package machine

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

// instant is memory as it was, and what a tracker says has changed since the one
// before.
type instant struct {
	memory map[addr.GPA][]byte
	dirty  map[addr.GPA][]pageRun
}

// TestTrackersSeeEveryChange: between two instants of a guest that writes, every page
// that differs is in what each tracker tells, and not all of the others are.
func TestTrackersSeeEveryChange(t *testing.T) {
	for _, by := range []kvm.Tracker{kvm.TrackByLog, kvm.TrackByRing, kvm.TrackByWriteProtection} {
		t.Run(by.String(), func(t *testing.T) {
			_, g := newGuest(t, by.Mode())
			if by == kvm.TrackByWriteProtection {
				testutil.RequireUFFD(t, testutil.UFFDWPAsync)
				w, err := g.Memory.TrackWrites()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
			}
			checkInstants(t, g, func() (i instant, err error) {
				g.VM.Pause()
				defer g.VM.Resume()
				g.reading.Lock()
				defer g.reading.Unlock()
				img := &still{m: g.Memory}
				if err := img.harvest(); err != nil {
					return i, err
				}
				return instant{readAll(t, g, img.ReadAt), img.dirty}, nil
			})
		})
	}
	t.Run("live snapshots", func(t *testing.T) {
		testutil.RequireUFFD(t, testutil.UFFDWPShmem)
		_, g := newGuest(t, kvm.DirtyNone)
		var last *Snapped
		defer func() {
			if last != nil {
				last.Close()
			}
		}()
		checkInstants(t, g, func() (i instant, err error) {
			s, err := g.Snapshot(t.Context())
			if err != nil {
				return i, err
			}
			i = instant{readAll(t, g, s.ReadAt), make(map[addr.GPA][]pageRun)}
			if last != nil {
				for _, r := range s.Regions() {
					err = errors.Join(err, s.Changed(last.Snapshot, r.Base, func(start addr.GPA, n uint64) bool {
						i.dirty[r.Base] = append(i.dirty[r.Base], pageRun{start, n})
						return true
					}))
				}
				err = errors.Join(err, last.Close())
			}
			last = s
			return i, err
		})
	})
}

func readAll(t *testing.T, g *Guest, readAt func([]byte, addr.GPA) (int, error)) map[addr.GPA][]byte {
	out := make(map[addr.GPA][]byte)
	for _, r := range g.Memory.Regions() {
		b := make([]byte, r.Size())
		if _, err := readAt(b, r.Base()); err != nil {
			t.Error(err)
		}
		out[r.Base()] = b
	}
	return out
}

func checkInstants(t *testing.T, g *Guest, take func() (instant, error)) {
	t.Helper()
	stop := g.KeepRunning(context.Background())
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	var before instant
	for round := range 6 {
		if err := g.Written(t.Context(), 50); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		now, err := take()
		if err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			compare(t, before, now)
		}
		before = now
	}
}

func compare(t *testing.T, before, now instant) {
	t.Helper()
	differ, told, all := 0, 0, 0
	for base, b := range now.memory {
		is := make(map[addr.GPA]bool)
		for _, run := range now.dirty[base] {
			for k := range run.n {
				is[run.start+addr.GPA(k*addr.PageSize)] = true
			}
		}
		told += len(is)
		all += len(b) / addr.PageSize
		for at := 0; at < len(b); at += addr.PageSize {
			if bytes.Equal(b[at:at+addr.PageSize], before.memory[base][at:at+addr.PageSize]) {
				continue
			}
			differ++
			if gpa := base + addr.GPA(at); !is[gpa] {
				t.Errorf("the page at %v has changed, and the tracker does not say so", gpa)
			}
		}
	}
	if differ == 0 || told >= all {
		t.Errorf("%d pages differ, %d of %d are told", differ, told, all)
	}
}
