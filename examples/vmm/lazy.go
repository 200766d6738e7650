//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/uffd/pager"
)

// lazyResult is a restore whose guest starts before its memory is there.
type lazyResult struct {
	FirstExit float64 `json:"first_exit_us"`
	Faults    uint64  `json:"faults"`
	Replayed  uint64  `json:"replayed_pages"`
}

// restoreTwice restores a file lazily, and again with the working set that the first
// run has recorded.
func (d *demo) restoreTwice(ctx context.Context, path string) error {
	var all lazyResult
	for _, what := range []string{"restore lazily", "restore lazily, with a working set"} {
		d.progress.add("live: " + what)
		r, err := d.restoreLazily(ctx, path, d.selfCheck)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		d.result.LazyRuns = append(d.result.LazyRuns, r)
		all.FirstExit, all.Replayed, all.Faults = r.FirstExit, r.Replayed, all.Faults+r.Faults
	}
	d.result.Lazy = &all
	return nil
}

// openSnapshot opens the file of a built-in guest.
func openSnapshot(path string) (*snapfile.File, *machine.Saved, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, nil, err
	}
	s := new(machine.Saved)
	if err := s.UnmarshalBinary(f.State()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, s, nil
}

// recordFor is how long the pages that a guest touches count as those it needs first:
// this one looks at all of its memory soon.
const recordFor = 100 * time.Millisecond

// restoreLazily starts a guest whose pages are still in a file, has check look at
// it, and waits until all pages are there and nothing of the restore is left.
func (d *demo) restoreLazily(ctx context.Context, path string, check func(context.Context, *machine.Guest) error) (_ lazyResult, err error) {
	var out lazyResult
	begin := time.Now()
	f, saved, err := openSnapshot(path)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if d.restore != "" {
		d.result.restored(saved)
	}
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	// What cannot be read ends the guest: its vCPUs leave, and with it who waits.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, err := pager.StartRestore(ctx, m, f, pager.RestoreOptions{
		Fail: func(err error) { cancel(err) },
		// What the filling of the rest cannot read may never be wanted by the guest, which
		// would go on; but the memory would never be whole, and here it is to be.
		OnProgress: func(p pager.Progress) {
			if p.Err != nil {
				cancel(p.Err)
			}
		},
		RecordFor: recordFor,
	})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	g, err := saved.Attach(d.sys, m)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, g.CloseVM()) }()
	err = g.Settle(ctx, func() { out.FirstExit = micros(time.Since(begin)) })
	if err == nil {
		err = check(ctx, g)
	}
	if err == nil {
		err = r.Wait(ctx)
	}
	if err != nil {
		for _, why := range []error{context.Cause(ctx), r.Err()} {
			if why != nil && !errors.Is(err, why) {
				err = errors.Join(why, err)
			}
		}
		return out, err
	}
	out.Faults, out.Replayed = r.Guest().Stats().Missing.Load(), r.Replayed()
	if err := r.WorkingSetErr(); err != nil {
		d.result.note("working set: %v", err)
	}
	return out, nil
}
