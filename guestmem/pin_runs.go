package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// PinRun is pages of a pin whose frames follow one another, and so do their bytes
// in the host mapping.
type PinRun struct {
	First addr.PFN
	N     uint64 // pages
	// HVA is where the first byte is for a device, in the mapping that vCPUs use
	// (a memory slot's). It is for vhost, io_uring, iovecs of system calls and the
	// like: Go code does not load or store there, since that mapping may be
	// watched (Memory.ReadAt and WriteAt by First.GPA go past that).
	HVA addr.HVA
}

// Runs returns the pinned frames in the order of the range, neighbours joined.
// They are valid until Release.
func (p *Pin) Runs() []PinRun {
	var out []PinRun
	for _, f := range p.frames {
		if n := len(out); n > 0 && out[n-1].First+addr.PFN(out[n-1].N) == f {
			out[n-1].N++
			continue
		}
		out = append(out, PinRun{First: f, N: 1, HVA: p.hva(f)})
	}
	return out
}

func (p *Pin) hva(f addr.PFN) addr.HVA {
	frames := p.as.mem.frames
	return frames.Slot() + addr.HVA(f.GPA()-frames.Base())
}

// HostRun is bytes that follow one another in the host mapping: an iovec.
type HostRun struct {
	HVA    addr.HVA
	Length uint64
}

// HostRuns returns where the bytes of r are, which lies in the pinned range, as
// PinRun.HVA has it, byte for byte, in order.
//
// Errors: ErrInvalid if r is empty or not in the range.
func (p *Pin) HostRuns(r addr.Range) ([]HostRun, error) {
	if r.IsEmpty() || !p.r.ContainsRange(r) {
		return nil, opError("host runs of a pin", r, fmt.Errorf("not in %v: %w", p.r, ErrInvalid))
	}
	var out []HostRun
	for at := r.Start; at < r.End; {
		end := min(at.RoundDown()+addr.PageSize, r.End)
		f := p.frames[(at.RoundDown()-p.r.Start)>>addr.PageShift]
		hva := p.hva(f) + addr.HVA(at.PageOffset())
		if n := len(out); n > 0 && out[n-1].HVA+addr.HVA(out[n-1].Length) == hva {
			out[n-1].Length += uint64(end - at)
		} else {
			out = append(out, HostRun{hva, uint64(end - at)})
		}
		at = end
	}
	return out, nil
}
