//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/kvm"
)

// tracker is how increments know what was written.
type tracker struct {
	live bool // by live snapshots, and the guest runs on
	kvm.Tracker
}

// Mode returns what the guest's VM needs.
func (t tracker) Mode() kvm.DirtyMode {
	if t.live {
		return kvm.DirtyNone
	}
	return t.Tracker.Mode()
}

// trackers are the values of -tracker, besides auto.
var trackers = map[string]tracker{
	"live": {live: true},
	"log":  {Tracker: kvm.TrackByLog},
	"ring": {Tracker: kvm.TrackByRing},
	"wp":   {Tracker: kvm.TrackByWriteProtection},
}

func (d *demo) chooseTracker() (tracker, error) {
	if d.tracker != "auto" {
		d.result.Tracker = d.tracker
		return trackers[d.tracker], nil
	}
	by, why := d.sys.CheapestTracker(kvm.TrackerUse{})
	for name, t := range trackers {
		if !t.live && t.Tracker == by {
			d.result.Tracker = name
			d.result.note("tracked by %v: %s", by, why)
			return t, nil
		}
	}
	return tracker{}, fmt.Errorf("%v: %w", by, kvm.ErrNotSupported)
}

// A capture writes one file of a guest that writes.
type capture func(ctx context.Context, g *machine.Guest, path string, o snapfile.Options) (snapfile.Info, time.Duration, error)

// chain writes a full file of a guest, and increments.
type chain struct {
	*demo
	g       *machine.Guest
	options snapfile.Options
	capture liveOrPaused
}

// liveOrPaused is a capture, and what it keeps from one to the next.
type liveOrPaused struct {
	capture
	close func() error
}

func (c *chain) write(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, c.capture.close()) }()
	var parent *snapfile.File
	defer func() {
		if parent != nil {
			err = errors.Join(err, parent.Close())
		}
	}()
	path := c.snapshot
	for i := range c.increments + 1 {
		if i > 0 {
			path = fmt.Sprintf("%s.%d", c.snapshot, i)
			if err := c.g.Written(ctx, c.g.Data.Pages/100); err != nil {
				return err
			}
		}
		o := c.options
		o.Parent, o.Progress = parent, c.progress.bytes("write "+path)
		info, paused, err := c.capture.capture(ctx, c.g, path, o)
		if err != nil {
			return err
		}
		c.result.Files = append(c.result.Files, fileResult{Path: path, Pause: micros(paused), Data: info.DataPages, Stored: info.StoredBytes})
		if i == c.increments {
			break
		}
		if parent != nil {
			err = parent.Close()
			parent = nil
		}
		if err == nil {
			parent, err = openFile(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// captureLive has the guest run on: what was written since the file before is what
// differs between two live snapshots.
func captureLive() liveOrPaused {
	var last *machine.Snapped
	forget := func() error {
		if last == nil {
			return nil
		}
		s := last
		last = nil
		return s.Close()
	}
	return liveOrPaused{
		capture: func(ctx context.Context, g *machine.Guest, path string, o snapfile.Options) (snapfile.Info, time.Duration, error) {
			s, err := g.Snapshot(ctx)
			if err != nil {
				return snapfile.Info{}, 0, err
			}
			info, err := s.Write(ctx, path, o, last)
			err = errors.Join(err, forget())
			last = s
			return info, s.Stats().Pause, err
		},
		close: forget,
	}
}

// capturePaused has the guest stand still for as long as a file takes.
func capturePaused() liveOrPaused {
	return liveOrPaused{
		capture: func(ctx context.Context, g *machine.Guest, path string, o snapfile.Options) (snapfile.Info, time.Duration, error) {
			begin := time.Now()
			info, err := g.WritePaused(ctx, path, o)
			return info, time.Since(begin), err
		},
		close: func() error { return nil },
	}
}
