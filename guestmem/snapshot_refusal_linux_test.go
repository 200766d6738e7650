package guestmem

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// What cannot be snapshotted is refused by name, and the guest goes on as if nothing
// had been asked.
func TestSnapshotRefused(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	take := func(m *Memory, o SnapshotOptions) error {
		s, err := m.Snapshot(context.Background(), o)
		if err == nil {
			mustDo(t, s.Close())
		}
		return err
	}
	pool := newMemory(t, 1<<20)
	empty := newPhys(t)
	file := newPhys(t)
	mustAdd(t, file, RegionOptions{Size: 2 * page, Backing: BackingFile, File: testFile(t, 2*page)})
	private := newPhys(t)
	mustAdd(t, private, RegionOptions{Size: 2 * page, Backing: BackingFilePrivate, File: testFile(t, 2*page)})
	lazy := newPhys(t)
	lr := mustAdd(t, lazy, RegionOptions{Size: 2 * page})
	mustDo(t, lr.SetFaultServer(idleServer{}, PagePresent))
	good, r, want := patterned(t, 8)
	closed, err := NewMemory(MemoryOptions{})
	mustDo(t, err)
	mustDo(t, closed.Close())
	paused := &pauseLock{}
	type refusal struct {
		m    *Memory
		o    SnapshotOptions
		want error
		says string
	}
	refusals := map[string]refusal{
		"a frame pool":          {pool, SnapshotOptions{}, ErrNotSupported, "frame pool"},
		"no region":             {empty, SnapshotOptions{}, ErrInvalid, "no region"},
		"a server without arms": {lazy, SnapshotOptions{}, ErrNotSupported, "guestmem.Armer"},
		"closed":                {closed, SnapshotOptions{}, ErrClosed, ""},
		"Prepare fails":         {good, SnapshotOptions{Pauser: paused, Prepare: func() error { return errRefused }}, errRefused, "prepare"},
		"AtInstant fails":       {good, SnapshotOptions{Pauser: paused, AtInstant: func() error { return errRefused }}, errRefused, "at the instant"},
		"unknown sweep":         {good, SnapshotOptions{Sweep: 9}, ErrInvalid, ""},
		"negative workers":      {good, SnapshotOptions{Workers: -1}, ErrInvalid, ""},
	}
	var fs unix.Statfs_t
	mustDo(t, unix.Statfs(t.TempDir(), &fs))
	if fs.Type != unix.TMPFS_MAGIC { // whose files are like memfds
		refusals["a file"] = refusal{file, SnapshotOptions{}, ErrNotSupported, "traps no writes to a file"}
		refusals["a private file"] = refusal{private, SnapshotOptions{}, ErrNotSupported, "private file"}
	}
	for name, c := range refusals {
		err := take(c.m, c.o)
		var e *Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, c.want, c.says)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := good.Snapshot(ctx, SnapshotOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	if r.anyArmed(0, 8) {
		t.Error("pages are armed, and there is no snapshot")
	}
	if !paused.TryLock() {
		t.Fatal("vCPUs still stand still")
	}
	mustEqualPages(t, mustReadPhys(t, good, r.base, len(want)), want, "the guest")
	mustDo(t, slotStore(r, 0, []byte{1}))
}

// A region that is added or goes while a snapshot is open: what the snapshot lacks
// is not taken from under it.
func TestSnapshotAndRegionsThatComeAndGo(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, r, want := patterned(t, 16)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	added := mustAdd(t, m, RegionOptions{Base: 0, Size: 4 * page})
	mustDo(t, slotStore(added, 0, []byte{1}))
	if _, err := s.ReadAt(make([]byte, 8), 0); !errors.Is(err, ErrNoRegion) {
		t.Errorf("a region that was added later is in the snapshot: %v", err)
	}
	s2 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustHaveChanged(t, s2, s, r.base, "")
	if err := s2.Changed(s, 0, func(_ addr.GPA, n uint64) bool {
		if n != 4 {
			t.Errorf("%d pages of a region that is new have changed", n)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"RemoveRegion":   m.RemoveRegion(r),
		"Close":          m.Close(),
		"Seal":           func() error { _, err := m.Seal(); return err }(),
		"SetFaultServer": r.SetFaultServer(idleServer{}, PagePresent),
		"Intercept":      r.Intercept(),
		"LetGo":          r.LetGo(func() error { return nil }),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s, while a snapshot lacks pages: %v", name, err)
		}
	}
	mustDo(t, slotStore(r, 3*page, []byte{7}))
	mustSweep(t, s)
	mustSweep(t, s2)
	mustDo(t, m.RemoveRegion(r))
	mustShow(t, s, r.base, want, "the snapshot of a region that is gone")
	mustDo(t, m.RemoveRegion(added))
	mustShow(t, s2, 0, append([]byte{1}, make([]byte, 4*page-1)...), "the second")
	clone := mustCloneOf(t, s, CloneOptions{})
	mustEqualPages(t, mustReadPhys(t, clone, r.base, len(want)), want, "a clone of what is gone")
}

// A snapshot can be closed at any time; arming ends with the last one, or after
// the sweep if that was asked for.
func TestSnapshotsEndArming(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, r, want := patterned(t, 64)
	a := mustSnapshotOf(t, m, SnapshotOptions{})
	b := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustDo(t, a.Close())
	mustDo(t, a.Close())
	if !r.anyArmed(0, 64) {
		t.Error("nothing is armed, and a snapshot is open")
	}
	for name, err := range map[string]error{
		"ReadAt": func() error { _, err := a.ReadAt(make([]byte, 1), r.base); return err }(),
		"Data":   a.Data(r.base, nil), "Sweep": a.Sweep(context.Background()), "Forget": a.Forget(),
		"Clone": func() error { _, err := a.Clone(context.Background(), CloneOptions{}); return err }(),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s of a closed snapshot: %v", name, err)
		}
	}
	store := []byte("while it is open")
	mustDo(t, slotStore(r, 9*page, store))
	mustShow(t, b, r.base, want, "the other one")
	mustDo(t, b.Close())
	if r.anyArmed(0, 64) || r.watched.Load() != 0 {
		t.Error("pages are armed, and no snapshot is open")
	}
	copy(want[9*page:], store)
	c := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand, After: DisarmSwept})
	mustSweep(t, c)
	for end := time.Now().Add(time.Minute); r.anyArmed(0, 64) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if r.anyArmed(0, 64) {
		t.Error("pages are armed after the sweep")
	}
	mustDo(t, slotStore(r, 10*page, bytes.Repeat([]byte{5}, page)))
	mustShow(t, c, r.base, want, "the one that is swept")
}
