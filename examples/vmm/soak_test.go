//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

var soakRounds = flag.Int("rounds", 3, "of the snapshot soak; 1000 with -soak")

// TestSnapshotSoak takes snapshots, clones and forks of a guest that writes all the
// while, and has another process write files, which is killed at any moment: what has the
// name of a snapshot file then is one, and the guest of each goes on.
func TestSnapshotSoak(t *testing.T) {
	testutil.RequireKVM(t)
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	rounds := *soakRounds
	if *soak {
		rounds = 1000
	}
	before := holdings()
	d := &demo{options: &options{seed: 5}, progress: newProgress(io.Discard)}
	d.result = newResult(d.options)
	var err error
	if d.sys, err = openKVM(); err != nil {
		t.Fatal(err)
	}
	if err := d.soak(t, rounds); err != nil {
		t.Error(err)
	}
	if err := d.sys.Close(); err != nil {
		t.Error(err)
	}
	if r := d.result; r.PagesChecked == 0 || r.SelfcheckErrors+r.ModelErrors > 0 {
		t.Errorf("%d pages checked, %d and %d wrong: %v", r.PagesChecked, r.SelfcheckErrors, r.ModelErrors, r.Notes)
	}
	if left := holdings().since(before); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func (d *demo) soak(t *testing.T, rounds int) (err error) {
	ctx := t.Context()
	layout, err := machine.NewLayout(machine.MinMemory, 0)
	if err != nil {
		return err
	}
	g, err := machine.New(d.sys, layout, kvm.DirtyNone, mix(d.seed, 0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	for _, cmd := range []guest.Command{guest.Nop, guest.Fill} {
		if err := g.Do(ctx, cmd); err != nil {
			return err
		}
	}
	stop := g.KeepRunning(ctx)
	var survived, killed int
	longest := 500 * time.Millisecond
	for i := range rounds {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		err = os.Mkdir(dir, 0o700)
		if err == nil {
			var took time.Duration
			var wasKilled bool
			// Every third writer may end by itself, and tells how long the others take.
			took, wasKilled = d.writeAndKill(t, dir, longest, i%3 == 0)
			if wasKilled {
				killed++
			} else {
				longest = took
			}
			err = d.round(ctx, g, uint64(i))
		}
		if err != nil {
			err = fmt.Errorf("round %d: %w", i, err)
			break
		}
		survived += checkSurvivors(t, dir)
		if i%10 == 0 {
			t.Logf("round %d: %d writers killed, %d files survived", i, killed, survived)
		}
		os.RemoveAll(dir)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d rounds: %d writers killed, %d files survived", rounds, killed, survived)
	if survived == 0 {
		t.Error("no file has survived")
	}
	return errors.Join(err, stop(), d.verify(ctx, g), d.account(g))
}

// writeAndKill has another process write files, and kills it, most often before it is
// done.
func (d *demo) writeAndKill(t *testing.T, dir string, longest time.Duration, isLet bool) (took time.Duration, wasKilled bool) {
	args := []string{"-snapshot", filepath.Join(dir, "guest.snap"), "-mem", "16M", "-increments", "2"}
	if rand.IntN(2) == 0 {
		args = append(args, "-compress")
	}
	if rand.IntN(3) == 0 {
		args = append(args, "-tracker", "auto")
	}
	c := command(t, args...)
	var errs strings.Builder
	c.Stderr = &errs
	begin := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if !isLet {
		// The moment of the kill; none of them is wrong.
		kill := time.AfterFunc(rand.N(longest), func() { c.Process.Kill() })
		defer kill.Stop()
	}
	err := c.Wait()
	if wasKilled = c.ProcessState.ExitCode() == -1; err != nil && !wasKilled {
		t.Errorf("the writer: %v: %s", err, &errs)
	}
	return time.Since(begin), wasKilled
}

// round takes a snapshot of a guest that runs, has a clone of it check itself before
// its pages were copied, and a fork.
func (d *demo) round(ctx context.Context, g *machine.Guest, n uint64) (err error) {
	s, err := g.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	clone, err := s.Clone(ctx, d.sys, d.reseed(2*n))
	if err != nil {
		return err
	}
	if err := errors.Join(d.selfCheck(ctx, clone), clone.Close()); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	if n%2 == 0 { // else it is closed in the middle of its sweep
		if err := s.Sweep(ctx); err != nil {
			return err
		}
	}
	child, err := g.Fork(ctx, d.sys, d.reseed(2*n+1))
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	if err := errors.Join(d.selfCheck(ctx, child), child.Close()); err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	return g.Written(ctx, 1)
}

// checkSurvivors verifies and restores what has the name of a snapshot file, and
// wants nothing beside it once stale temporaries were removed.
func checkSurvivors(t *testing.T, dir string) (n int) {
	t.Helper()
	if _, err := snapfile.RemoveStale(dir); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "guest.snap") {
			t.Errorf("left behind: %s", e.Name())
			continue
		}
		file := filepath.Join(dir, e.Name())
		mustRun(t, ": ok, ", "verify", file)
		mustRun(t, "\nok\n", "-restore", file)
		mustRun(t, "\nok\n", "-restore", file, "-lazy")
		n++
	}
	return n
}
