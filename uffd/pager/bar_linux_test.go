package pager

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/internal/testutil"
)

// badPage is a source that cannot read one page.
type badPage struct {
	Source
	at uint64
}

func (b badPage) ReadPages(ctx context.Context, p []byte, off uint64) error {
	if off <= b.at && b.at < off+uint64(len(p)) {
		return unix.EIO
	}
	return b.Source.ReadPages(ctx, p, off)
}

// TestR12FailedGuestIsLetGo: who waits for a page that cannot be had, without a way to
// be interrupted, gets an error when the guest is failed, before anybody closes
// anything; and so does whoever comes later, for whatever page.
func TestR12FailedGuestIsLetGo(t *testing.T) {
	img := twoRegions(64)
	m := newMemory(t)
	f := openSaved(t, save(t, img, snapfile.Options{}))
	failed := make(chan error, 1)
	ram := img.regions[0].Base
	r := startRestore(t, m, f, RestoreOptions{
		WorkingSets: NoWorkingSet, Rest: LeaveRest, Fail: func(err error) { failed <- err },
		wrap: func(s Source) Source { return badPage{s, uint64(ram) + 32*smallPage} },
	})
	there, bad := slotAt(m, ram), slotAt(m, ram+32*smallPage)
	loadPage(t, there, savedPage(ram))
	p := make([]byte, smallPage)
	if err := testutil.Proceeds(t, goLoad(bad, p), "load of the page that cannot be had"); !errors.Is(err, unix.EFAULT) {
		t.Errorf("the load: %v, %x...", err, head(p))
	}
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if err := testutil.Proceeds(t, goLoad(there, p), "load of another page"); !errors.Is(err, unix.EFAULT) {
		t.Errorf("a load afterwards: %v", err)
	}
	if _, err := m.ReadAt(p, ram+33*smallPage); err == nil {
		t.Error("Go code reads what was never there")
	}
	r.Close()
}
