package pager_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd/pager"
)

// TestR12VCPUWhosePagerEnds: a restore is closed, or its server, under a vCPU that runs,
// while a snapshot of it is open: the vCPU gets an error for what is missing and no
// zeroes, and what can be read of the snapshot is what there was at its instant.
func TestR12VCPUWhosePagerEnds(t *testing.T) {
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	p := newProgram(t, 2048, 1)
	path := p.save(t)
	ends := map[string]func(*counter, *pager.Server){
		"restore": func(c *counter, _ *pager.Server) { c.restore.Close() },
		"server":  func(_ *counter, s *pager.Server) { s.Close() },
	}
	for name, end := range ends {
		for round := range 4 {
			t.Run(fmt.Sprint(name, round), func(t *testing.T) {
				server := pager.NewServer(pager.Options{})
				defer server.Close()
				c := startCounter(t, p, path, pager.RestoreOptions{
					Server: server, Rest: pager.LeaveRest, WorkingSets: pager.NoWorkingSet, Fail: func(error) {},
				})
				wait := func(missing uint64) { // until so much has come that no more than these are missing
					for end := time.Now().Add(patience); c.restore.Guest().Missing() > missing && time.Now().Before(end); {
						time.Sleep(50 * time.Microsecond)
					}
				}
				wait(2048)
				s, regs := c.snapshot(guestmem.SnapshotOptions{Sweep: guestmem.SweepMode(round % 2)})
				if left := c.restore.Guest().Missing(); left > 300 {
					wait(left - 300)
				}
				end(c, server)
				if c.restore.Guest().Missing() == 0 {
					t.Log("all of it had come before the end")
					must(t, s.Close())
					return
				}
				err := testutil.Proceeds(t, c.ended, "vCPU whose pages do not come")
				// KVM takes page tables that it cannot read for a fault of the guest's, which has
				// no handler for it here.
				if err == nil || !strings.Contains(err.Error(), syscall.EFAULT.Error()) && err.Error() != "exit shutdown" {
					t.Errorf("the vCPU has ended: %v, want EFAULT", err)
				}
				c.ended <- err
				if guestmem.SweepMode(round%2) == guestmem.SweepInBackground {
					testutil.Proceeds(t, s.Done(), "end of the snapshot")
				}
				want, readable := counted(regs, p.n), 0
				p.wantMemory(t, "the snapshot", regs, func(b []byte, at addr.GPA) (int, error) {
					n, err := s.ReadAt(b, at)
					if err == nil {
						readable++
						return n, nil
					}
					times := want(uint64(at-ramAt) / pageSize)
					if times > 0 && s.Err() == nil || !errors.Is(err, pager.ErrClosed) && !errors.Is(err, pager.ErrServerClosed) {
						t.Errorf("page at %v, which was counted %d times: %v", at, times, err)
					}
					binary.LittleEndian.PutUint64(b, uint64(at)^key) // passed over
					binary.LittleEndian.PutUint64(b[8:], times)
					binary.LittleEndian.PutUint64(b[16:], uint64(at))
					return len(b), nil
				})
				if readable == 0 {
					t.Error("nothing can be read of the snapshot")
				}
				if err := s.Sweep(context.Background()); !errors.Is(err, pager.ErrClosed) && !errors.Is(err, pager.ErrServerClosed) {
					t.Errorf("Sweep: %v", err)
				}
				must(t, s.Close())
			})
		}
	}
}
