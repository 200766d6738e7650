package pager

import (
	"fmt"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
)

// putOffClock is a clock that the test has go: what is put off takes place when it
// says so.
type putOffClock struct {
	t   *testing.T
	set chan alarm
}

type alarm struct {
	after time.Duration
	fn    func()
}

func (c *putOffClock) afterFunc(d time.Duration, fn func()) *time.Timer {
	c.set <- alarm{d, fn}
	stopped := time.NewTimer(time.Hour)
	stopped.Stop()
	return stopped
}

// next waits until something is put off.
func (c *putOffClock) next() alarm {
	c.t.Helper()
	return testutil.Proceeds(c.t, c.set, "the restore, to put its rest off")
}

// TestRestIsPutOffUntilTheGuestMisses: while there is no working set, the rest of a
// file comes when RecordFor has gone by for a guest that misses pages, and for one that
// misses none, since it does not run yet, after ten times that; not before, and not
// after the end of the restore.
func TestRestIsPutOffUntilTheGuestMisses(t *testing.T) {
	img := savedImage{[]snapfile.Region{{Name: "ram", Base: armBase, Size: 512 * smallPage, PageSize: smallPage}}}
	path := save(t, img, snapfile.Options{})
	const recordFor = 40 * time.Minute // of the test's clock
	start := func(t *testing.T, o RestoreOptions) (*guestmem.Memory, *Restore, *putOffClock) {
		c := &putOffClock{t, make(chan alarm, 1)}
		m := newMemory(t)
		o.WorkingSet, o.after = t.TempDir()+"/set", c.afterFunc
		return m, startRestore(t, m, openSaved(t, path), o), c
	}
	rests := func(t *testing.T, r *Restore, when string) {
		t.Helper()
		eventually(t, "the fill to have nothing to do", func() bool { return !r.guest.fill.wanted() && r.guest.fill.active.Load() == 0 })
		if n := r.guest.Stats().Prefetch.Load(); n != 0 {
			t.Errorf("%s, %d pages have come that nobody asked for", when, n)
		}
	}
	filled := func(t *testing.T, r *Restore, c *putOffClock) {
		t.Helper()
		waitRestored(t, r)
		if n := r.guest.Stats().Prefetch.Load(); n == 0 {
			t.Error("nothing was filled")
		}
		if len(c.set) > 0 {
			t.Error("it is put off again")
		}
	}
	// -1: it never misses a page, and is waited for as long as may be.
	for _, missesIn := range []int{-1, 1, 2, 7, 10} {
		ok := t.Run(fmt.Sprintf("misses=%d", missesIn), func(t *testing.T) {
			m, r, c := start(t, RestoreOptions{RecordFor: recordFor})
			for k := 1; ; k++ {
				a := c.next()
				if a.after != recordFor {
					t.Errorf("it is put off for %v, want %v", a.after, recordFor)
				}
				rests(t, r, fmt.Sprintf("put off %d times", k))
				if k == missesIn {
					loadPage(t, slotAt(m, armBase+smallPage), savedPage(armBase+smallPage))
					rests(t, r, "when one page was missed")
				}
				a.fn()
				if k == missesIn || k == 10 {
					filled(t, r, c)
					return
				}
			}
		})
		if !ok {
			return
		}
	}
	t.Run("a second if nobody says", func(t *testing.T) {
		_, r, c := start(t, RestoreOptions{})
		if a := c.next(); a.after != time.Second {
			t.Errorf("it is put off for %v", a.after)
		}
		rests(t, r, "put off")
	})
	for name, o := range map[string]RestoreOptions{
		"not at all":          {RecordFor: -1},
		"nothing to record":   {WorkingSets: NoWorkingSet},
		"nothing is recorded": {WorkingSets: ReplayOnly},
	} {
		t.Run(name, func(t *testing.T) {
			_, r, c := start(t, o)
			filled(t, r, c)
		})
	}
	t.Run("closed meanwhile", func(t *testing.T) {
		_, r, c := start(t, RestoreOptions{RecordFor: recordFor})
		a := c.next()
		must(t, r.Close())
		a.fn() // the timer had gone off already
		if len(c.set) > 0 {
			t.Error("the rest of a restore that has ended is put off")
		}
		if n := r.guest.Stats().Prefetch.Load(); n != 0 {
			t.Errorf("%d pages have come that nobody asked for", n)
		}
	})
}
