//go:build linux && amd64

package machine

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/kvm"
)

// ErrForeignState is the state of a guest that is not the built-in one.
var ErrForeignState = errors.New("the snapshot is not of the built-in guest")

// Saved is a guest but for its memory.
type Saved struct {
	Layout
	State *kvm.MachineState
}

// encodedState is Saved in a snapshot file.
type encodedState struct {
	Guest   string `json:"guest"`
	Memory  uint64 `json:"memory"`
	Hot     uint64 `json:"hot"`
	Machine []byte `json:"machine"`
}

const guestName = "guestmm vmm built-in"

// MarshalBinary returns what a snapshot file keeps.
func (s *Saved) MarshalBinary() ([]byte, error) {
	machine, err := s.State.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return json.Marshal(encodedState{Guest: guestName, Memory: s.memory, Hot: s.hot, Machine: machine})
}

// UnmarshalBinary reads it.
//
// Errors: ErrForeignState; those of NewLayout and of kvm.MachineState.
func (s *Saved) UnmarshalBinary(b []byte) error {
	var e encodedState
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("%w: %v", ErrForeignState, err)
	}
	if e.Guest != guestName {
		return fmt.Errorf("%w: %q", ErrForeignState, e.Guest)
	}
	l, err := NewLayout(e.Memory, e.Hot)
	if err != nil {
		return err
	}
	state := new(kvm.MachineState)
	if err := state.UnmarshalBinary(e.Machine); err != nil {
		return err
	}
	s.Layout, s.State = l, state
	return nil
}
