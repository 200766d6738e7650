//go:build linux && amd64

package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// Holes answers accesses to guest-physical memory that is not there. nil: they
// are errors.
type Holes func(kvm.VCPUExit) error

// Resume runs a vCPU to its doorbell.
func (g *Guest) Resume(ctx context.Context, id int, holes Holes) error {
	v := g.vcpus[id]
	for {
		e, err := v.Run(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("vCPU %d: %w", id, err)
		case e.Kind == kvm.VMExitIO && e.Port == guest.Doorbell:
			return nil
		case e.Kind == kvm.VMExitKicked:
		case e.Kind == kvm.VMExitMMIO && holes != nil:
			if err := holes(e); err != nil {
				return err
			}
		default:
			r, _ := v.Regs()
			return fmt.Errorf("vCPU %d at %#x: unexpected exit: %v", id, r.RIP, e)
		}
	}
}

// Tell writes a command into the control page of a vCPU that waits at its doorbell.
func (g *Guest) Tell(id int, cmd guest.Command, args ...uint64) error {
	b := make([]byte, guest.ControlConsumed)
	binary.LittleEndian.PutUint64(b, uint64(cmd))
	for i, a := range args {
		binary.LittleEndian.PutUint64(b[guest.ControlArgs+8*i:], a)
	}
	_, err := g.Memory.WriteAt(b, control(uint64(id)))
	return err
}

// Begin has every vCPU do a command. The channel yields one error or nil, once
// all have rung again. The ledgers have to be fetched meanwhile.
func (g *Guest) Begin(ctx context.Context, cmd guest.Command, args ...uint64) <-chan error {
	done := make(chan error, 1)
	errs := make(chan error, len(g.vcpus))
	for id := range g.vcpus {
		go func() {
			err := g.Tell(id, cmd, args...)
			if err == nil {
				err = g.Resume(ctx, id, nil)
			}
			if err != nil {
				g.stop() // the other one would go on for ever
			}
			errs <- err
		}()
	}
	go func() {
		var all []error
		for range g.vcpus {
			all = append(all, <-errs)
		}
		done <- errors.Join(all...)
	}()
	return done
}

func (g *Guest) stop() { _ = g.Memory.Store64(guest.ConfigBase+guest.ConfigStop, 1) }

// End has vCPUs that do guest.Run ring their doorbells, and waits for them.
func (g *Guest) End(done <-chan error) error {
	g.stop()
	err := g.Wait(done)
	return errors.Join(err, g.Memory.Store64(guest.ConfigBase+guest.ConfigStop, 0))
}

// Wait fetches the ledgers until a command is done.
func (g *Guest) Wait(done <-chan error) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var failed error
	for {
		select {
		case err := <-done:
			return errors.Join(failed, err, g.fetch())
		case <-tick.C:
			if failed == nil {
				failed = g.fetch()
			}
		}
	}
}

// Do has every vCPU do a command, and waits for them.
func (g *Guest) Do(ctx context.Context, cmd guest.Command, args ...uint64) error {
	return g.Wait(g.Begin(ctx, cmd, args...))
}

// DoOne has one vCPU do a command.
func (g *Guest) DoOne(ctx context.Context, id int, holes Holes, cmd guest.Command, args ...uint64) error {
	if err := g.Tell(id, cmd, args...); err != nil {
		return err
	}
	if err := g.Resume(ctx, id, holes); err != nil {
		return err
	}
	return g.fetch()
}

// Touched is what a vCPU saw at an address before and after it stored a word.
type Touched struct{ Before, After uint64 }

// Touch has vCPU 0 load and store a word.
func (g *Guest) Touch(ctx context.Context, at addr.GPA, word uint64, holes Holes) (t Touched, err error) {
	if err := g.DoOne(ctx, 0, holes, guest.Touch, uint64(at), word); err != nil {
		return t, err
	}
	var err1, err2 error
	t.Before, err1 = g.Memory.Load64(control(0) + guest.ControlResult)
	t.After, err2 = g.Memory.Load64(control(0) + guest.ControlResult + 8)
	return t, errors.Join(err1, err2)
}

// CheckROM has vCPU 0 look at the read-only region.
func (g *Guest) CheckROM(ctx context.Context) error {
	return g.DoOne(ctx, 0, nil, guest.ROM, uint64(g.ROM), romPages, romSeed)
}

// Discard gives pages of an area back to the host, and has the guest want zeroes there.
func (g *Guest) Discard(ctx context.Context, a guest.Area, first, n uint64) error {
	if err := g.Memory.Discard(a.Base+addr.GPA(first*addr.PageSize), n*addr.PageSize); err != nil {
		return err
	}
	g.Model.discard(a.ID, first, n)
	return g.DoOne(ctx, 0, nil, guest.Zero, a.ID, first, n)
}

// SelfCheck is what the guest itself has found.
type SelfCheck struct {
	Checked, Errors uint64
	First           string // the first error
}

// SelfChecked adds up what the vCPUs have found so far, in this guest.
func (g *Guest) SelfChecked() (SelfCheck, error) {
	s, err := g.counters()
	s.Checked -= g.inherited.Checked
	s.Errors -= g.inherited.Errors
	return s, err
}

// counters are SelfChecked with what a clone has from the guest that was sealed.
func (g *Guest) counters() (s SelfCheck, err error) {
	for id := range uint64(guest.VCPUs) {
		var w [6]uint64
		for i := range w {
			if w[i], err = g.Memory.Load64(control(id) + guest.ControlChecked + addr.GPA(8*i)); err != nil {
				return s, err
			}
		}
		s.Checked, s.Errors = s.Checked+w[0], s.Errors+w[1]
		if w[1] > 0 && s.First == "" {
			s.First = fmt.Sprintf("vCPU %d: page %#x, word %d is %#x, should be %#x", id, w[2], w[3], w[4], w[5])
		}
	}
	return s, nil
}

// Seed returns the guest's own seed and its lineage.
func Seed(m *guestmem.Memory) (seed, lineage uint64, err error) {
	if lineage, err = m.Load64(guest.ConfigBase + guest.ConfigLineage); err != nil {
		return 0, 0, err
	}
	seed, err = m.Load64(guest.ConfigBase + guest.ConfigSeeds + addr.GPA(8*(lineage%guest.MaxSeeds)))
	return seed, lineage, err
}

// Reseed is what a clone's hook does: the guest gets a seed of its own, and keeps
// those of its ancestors, with which it knows their pages.
func Reseed(m *guestmem.Memory, seed uint64) error {
	_, lineage, err := Seed(m)
	if err != nil {
		return err
	}
	if lineage++; lineage >= guest.MaxSeeds {
		return fmt.Errorf("a clone of the %dth generation: %w", lineage, guestmem.ErrInvalid)
	}
	return errors.Join(
		m.Store64(guest.ConfigBase+guest.ConfigSeeds+addr.GPA(8*lineage), seed),
		m.Store64(guest.ConfigBase+guest.ConfigLineage, lineage))
}
