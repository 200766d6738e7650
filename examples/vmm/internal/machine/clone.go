//go:build linux && amd64

package machine

import (
	"errors"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// Sealed is a guest that clones are made of.
type Sealed struct {
	Layout
	Template *guestmem.Template
	State    *kvm.MachineState
	model    *Model
	checked  SelfCheck // by the sealed guest
}

// Seal makes a template of the guest, whose vCPUs wait at their doorbells. The
// guest is used up.
func (g *Guest) Seal() (*Sealed, error) {
	g.VM.Pause()
	defer g.VM.Resume()
	state, err := g.VM.Save()
	if err != nil {
		return nil, err
	}
	checked, err := g.counters()
	if err != nil {
		return nil, err
	}
	t, err := g.Memory.Seal()
	if err != nil {
		return nil, err
	}
	if err := g.Close(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return &Sealed{Layout: g.Layout, Template: t, State: state, model: g.Model, checked: checked}, nil
}

// Close lets go of the template. Clones go on.
func (s *Sealed) Close() error { return s.Template.Close() }

// Clone makes a guest that goes on where the sealed one stood. hook may be nil.
func (s *Sealed) Clone(sys *kvm.System, dirty kvm.DirtyMode, hook func(*guestmem.Memory) error) (*Guest, error) {
	m, err := s.Template.Clone(guestmem.CloneOptions{Hook: hook})
	if err != nil {
		return nil, err
	}
	g := &Guest{Layout: s.Layout, Memory: m}
	if err := g.attach(sys, dirty, s.State); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Guest) attach(sys *kvm.System, dirty kvm.DirtyMode, state *kvm.MachineState) (err error) {
	if g.VM, err = sys.NewVM(g.Memory, options(dirty)); err != nil {
		return err
	}
	g.harvested = dirty != kvm.DirtyNone
	if err := g.addVCPUs(); err != nil {
		return err
	}
	return g.VM.Load(state)
}

// Follow gives a clone a model of its own, with which harvests and tables can be
// compared. A clone that only idles needs none.
func (s *Sealed) Follow(g *Guest) { g.Model, g.inherited = s.model.clone(), s.checked }
