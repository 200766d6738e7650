package guestmem

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
)

// snapshotWorld runs a scenario over snapshots while the calls of a plan fail.
type snapshotWorld struct {
	t    *testing.T
	run  *inject.Run
	m    *Memory
	r    []*Region
	want [][]byte
}

// try runs op while calls may fail, and again if one did. Whatever fails, the guest has
// what it had.
func (w *snapshotWorld) try(what string, op func() error) {
	w.t.Helper()
	before := w.run.Failures()
	err := w.run.During(op)
	if err != nil && w.run.Failures() == before {
		w.t.Fatalf("%s: %v, and no call had failed", what, err)
	}
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) && !errors.Is(err, ErrNoMemory) {
			w.t.Errorf("%s: %v does not reach what failed", what, err)
		}
		w.verify(what + " that failed")
		if err := op(); err != nil {
			w.t.Fatalf("%s, made again: %v, with %v", what, err, w.run)
		}
	}
}

func (w *snapshotWorld) verify(what string) {
	w.t.Helper()
	for i, r := range w.r {
		mustEqualPages(w.t, mustReadPhys(w.t, w.m, r.base, len(w.want[i])), w.want[i], what)
	}
}

// store stores one byte to page i of each region, by Go code or by the kernel.
func (w *snapshotWorld) store(how string, i int, b byte) {
	for k, r := range w.r {
		w.try(how+" store", func() error {
			if how == "Go" {
				return w.m.Store8(r.base+addr.GPA(i*page), b)
			}
			return slotStore(r, uint64(i*page), []byte{b})
		})
		w.want[k][i*page] = b
	}
}

// snapshot takes one, with what it has to hold.
func (w *snapshotWorld) snapshot() (*Snapshot, [][]byte) {
	var s *Snapshot
	w.try("snapshot", func() (err error) {
		s, err = w.m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand})
		return err
	})
	var want [][]byte
	for _, b := range w.want {
		want = append(want, bytes.Clone(b))
	}
	return s, want
}

// ended reports whether a snapshot has failed, by an injected failure: its owner
// throws it away, and the guest has what it had.
func (w *snapshotWorld) ended(s *Snapshot) bool {
	err := s.Err()
	if err == nil {
		return false
	}
	if w.run.Failures() == 0 {
		w.t.Fatalf("the snapshot has failed, and no call had: %v", err)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) && !errors.Is(err, ErrNoMemory) {
		w.t.Errorf("the snapshot's %v does not reach what failed", err)
	}
	w.verify("a snapshot that failed")
	return true
}

func (w *snapshotWorld) scenario() {
	t := w.t
	const n = 16
	w.m = newPhys(t)
	w.r = append(w.r, mustAdd(t, w.m, RegionOptions{Size: n * page}),
		mustAdd(t, w.m, RegionOptions{Base: 1 << 30, Size: n * page, Backing: BackingAnonymous, HugePages: HugeNever}))
	for k, r := range w.r {
		w.want = append(w.want, make([]byte, n*page))
		p := bytes.Repeat([]byte{byte(k + 1)}, n/2*page)
		mustWritePhys(t, w.m, r.base, p)
		copy(w.want[k], p)
	}
	a, wantA := w.snapshot()
	w.store("Go", 1, 11)
	w.store("kernel", 2, 12)
	w.store("kernel", n-1, 13)
	b, wantB := w.snapshot()
	w.store("Go", 2, 14)
	for k, r := range w.r {
		w.try("discard", func() error { return w.m.Discard(r.base+3*page, page) })
		clear(w.want[k][3*page : 4*page])
	}
	if !w.ended(b) {
		w.clone(b, wantB)
	}
	for _, x := range []struct {
		s    *Snapshot
		want [][]byte
	}{{a, wantA}, {b, wantB}} {
		_ = w.run.During(func() error { return x.s.Sweep(context.Background()) })
		if !w.ended(x.s) {
			for k, r := range w.r {
				mustShow(t, x.s, r.base, x.want[k], "a snapshot")
			}
		}
		// What close is made to say does not matter: it is done.
		_ = w.run.During(x.s.Close)
		w.verify("a snapshot that is closed")
	}
	w.store("kernel", 5, 15)
	w.store("Go", 6, 16)
}

// clone makes a clone that lacks pages, and looks at them.
func (w *snapshotWorld) clone(s *Snapshot, want [][]byte) {
	var c *Memory
	err := w.run.During(func() (err error) {
		c, err = s.Clone(context.Background(), CloneOptions{})
		return err
	})
	if err != nil {
		if w.run.Failures() == 0 {
			w.t.Errorf("clone: %v", err)
		}
		return
	}
	for k, r := range w.r {
		got := make([]byte, len(want[k]))
		var n int
		err := w.run.During(func() (err error) {
			n, err = c.ReadAt(got, r.base)
			return err
		})
		if err != nil && w.run.Failures() == 0 {
			w.t.Errorf("read a clone: %v", err)
		}
		// What it has read is right, also where it could not read all.
		mustEqualPages(w.t, append(got[:n:n], want[k][n:]...), want[k], "a clone")
	}
	_ = w.run.During(c.Close)
	if err := c.Close(); err != nil {
		w.t.Errorf("the clone's second Close: %v", err)
	}
}

// R13, R12: whatever the host refuses, a snapshot fails by name or is complete, the
// guest runs on with what it has, and nothing is left behind.
func TestR13SnapshotsInjectedFailure(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	mine := func(p *inject.Point) bool {
		return strings.HasPrefix(p.Name(), "snapshot: ") || p.Name() == "region: process_vm" ||
			p.Name() == "memfd_create" || p.Name() == "ftruncate" || p.Name() == "fallocate" || p.Name() == "madvise: populate"
	}
	for _, span := range []int{1, 3} {
		for from := 0; ; from += 1 + from/40 {
			passes := 0
			t.Run("", func(t *testing.T) {
				w := &snapshotWorld{t: t, run: inject.Start(inject.Plan{Match: mine, From: from, Until: from + span})}
				w.scenario()
				passes = w.run.Passes()
			})
			if t.Failed() {
				t.Fatalf("with passes [%d, %d) failing", from, from+span)
			}
			if from >= passes {
				break
			}
		}
	}
	for _, p := range inject.Points() {
		if strings.HasPrefix(p.Name(), "snapshot: ") && p.Failed() == 0 {
			t.Errorf("no scenario reaches the point %q", p.Name())
		}
	}
}
