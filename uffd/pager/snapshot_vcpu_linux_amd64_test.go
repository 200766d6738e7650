package pager_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd/pager"
)

// snapshot takes a snapshot of the running guest, and returns it with what the
// registers were at its instant.
func (c *counter) snapshot(o guestmem.SnapshotOptions) (*guestmem.Snapshot, kvm.GeneralRegs) {
	c.t.Helper()
	var regs kvm.GeneralRegs
	o.Pauser = c.vm
	o.AtInstant = func() (err error) {
		regs, err = c.vcpu.Regs()
		return err
	}
	s, err := c.m.Snapshot(context.Background(), o)
	must(c.t, err)
	c.t.Cleanup(func() { s.Close() })
	return s, regs
}

// TestR15SnapshotsDuringARestore: snapshots of a guest whose memory is still coming
// hold what the guest had at their instants, page by page: what it had written,
// what had come and was not written, and what was still in the file.
func TestR15SnapshotsDuringARestore(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	p := newProgram(t, 4096, 1)
	path := p.save(t)
	for _, sweep := range []guestmem.SweepMode{guestmem.SweepInBackground, guestmem.SweepOnDemand} {
		t.Run(fmt.Sprintf("sweep=%d", sweep), func(t *testing.T) {
			c := startCounter(t, p, path, pager.RestoreOptions{RecordFor: -1, Pause: 5 * time.Millisecond, Parallel: 1, WorkingSets: pager.NoWorkingSet})
			type taken struct {
				s    *guestmem.Snapshot
				regs kvm.GeneralRegs
			}
			var all []taken
			missing := uint64(0)
			for k := range 4 {
				missing = max(missing, c.restore.Guest().Missing())
				s, regs := c.snapshot(guestmem.SnapshotOptions{Sweep: sweep})
				all = append(all, taken{s, regs})
				p.wantMemory(t, fmt.Sprintf("snapshot %d at once", k), regs, s.ReadAt)
			}
			if missing == 0 {
				t.Log("the restore was over before the first snapshot") // on a host that is loaded
			}
			for k, x := range all {
				if sweep == guestmem.SweepOnDemand {
					must(t, x.s.Sweep(context.Background()))
				}
				testutil.Proceeds(t, x.s.Done(), "sweep")
				must(t, x.s.Err())
				p.wantMemory(t, fmt.Sprintf("snapshot %d, swept", k), x.regs, x.s.ReadAt)
			}
			c.until(c.passes.Load() + 2)
			for _, x := range all {
				must(t, x.s.Close())
			}
			testutil.Proceeds(t, c.restore.Done(), "end of the restore")
			must(t, c.restore.Err())
			// Now an ordinary one.
			s, regs := c.snapshot(guestmem.SnapshotOptions{})
			p.wantMemory(t, "a snapshot after the restore", regs, s.ReadAt)
			c.until(c.passes.Load() + 2)
			p.wantMemory(t, "a snapshot after the restore, later", regs, s.ReadAt)
			must(t, s.Close())
			c.halt()
			regs, err := c.vcpu.Regs()
			must(t, err)
			p.wantMemory(t, "the guest", regs, c.m.ReadAt)
		})
	}
}
