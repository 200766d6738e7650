//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	msrTSC         = 0x10
	msrTSCDeadline = 0x6e0
)

// rangeMSRs are registers that guests depend on and KVM_GET_MSR_INDEX_LIST leaves
// out: the MTRRs. They are part of a state where the host reads them.
var rangeMSRs = func() []uint32 {
	msrs := []uint32{0x250, 0x258, 0x259, 0x2ff}
	for i := uint32(0x268); i < 0x270; i++ {
		msrs = append(msrs, i)
	}
	for i := uint32(0x200); i < 0x210; i++ {
		msrs = append(msrs, i)
	}
	return msrs
}()

// msrPlan is which MSRs a VM's state has. It is found out by the first vCPU that
// is asked, since each that is refused ends an ioctl.
type msrPlan struct {
	readable []uint32
	unread   []uint32
}

// MSRs is KVM_GET_MSRS. The error names the first that could not be read.
func (v *VCPU) MSRs(indices ...uint32) (values []MSR, err error) {
	err = v.access("KVM_GET_MSRS", func() (err error) {
		values, err = v.getMSRs(indices)
		return err
	})
	return values, err
}

// SetMSRs is KVM_SET_MSRS. The error, a *StateError, names the first that was
// refused; those before it are set.
func (v *VCPU) SetMSRs(values ...MSR) error {
	return v.access("KVM_SET_MSRS", func() error { return v.setMSRs(values) })
}

// getMSRs reads registers until one is refused.
func (v *VCPU) getMSRs(indices []uint32) ([]MSR, error) {
	out := make([]MSR, 0, len(indices))
	batch := new(uMSRBatch)
	for len(indices) > 0 {
		n := min(len(indices), msrBatch)
		batch.n = uint32(n)
		for i, index := range indices[:n] {
			batch.entries[i] = MSR{Index: index}
		}
		done, err := ioctlPtr(v.fd, reqGetMSRs, batch)
		if err != nil {
			return out, opError("KVM_GET_MSRS", err)
		}
		out = append(out, batch.entries[:done]...)
		if done < n {
			return out, opError("KVM_GET_MSRS", fmt.Errorf("%w: MSR %#x is not readable", unix.EINVAL, indices[done]))
		}
		indices = indices[n:]
	}
	return out, nil
}

// setMSRs writes registers until one is refused.
func (v *VCPU) setMSRs(values []MSR) error {
	done, err := v.putMSRs(values)
	if err == nil && done < len(values) {
		_, err = v.refused(values[done])
	}
	return err
}

// putMSRs returns how many registers it has written: all, or up to one that the
// kernel refuses.
func (v *VCPU) putMSRs(values []MSR) (done int, err error) {
	v.hasRun = true
	batch := new(uMSRBatch)
	for done < len(values) {
		n := copy(batch.entries[:], values[done:])
		batch.n = uint32(n)
		set, err := ioctlPtr(v.fd, reqSetMSRs, batch)
		if err != nil {
			return done, opError("KVM_SET_MSRS", err)
		}
		if done += set; set < n {
			break
		}
	}
	return done, nil
}

// refused says whether a register that the kernel would not set has the wanted
// value anyway, and what the error is.
func (v *VCPU) refused(m MSR) (same bool, err error) {
	e := &StateError{Part: fmt.Sprintf("MSR %#x", m.Index), Want: fmt.Sprintf("%#x", m.Data), Have: "no such register", Err: unix.EINVAL}
	now, err := v.getMSRs([]uint32{m.Index})
	switch {
	case err == nil:
		e.Have = fmt.Sprintf("%#x and refuses another value", now[0].Data)
		return now[0].Data == m.Data, e
	case errors.Is(err, unix.EINVAL):
		return false, e
	}
	return false, err
}

// loadMSRs writes all registers of a state. One that is refused is passed over if
// the host has the wanted value anyway (it is read-only there, or belongs to a
// feature that the guest is not shown); the others are reported, all of them.
func (v *VCPU) loadMSRs(values []MSR) error {
	var errs []error
	for {
		done, err := v.putMSRs(values)
		if err != nil || done == len(values) {
			return errors.Join(append(errs, err)...)
		}
		if same, err := v.refused(values[done]); !same {
			errs = append(errs, err)
		}
		values = values[done+1:]
	}
}

// saveMSRs reads every register of the plan.
func (v *VCPU) saveMSRs() ([]MSR, []uint32, error) {
	if plan := v.vm.msrs.Load(); plan != nil {
		if values, err := v.getMSRs(plan.readable); err == nil {
			return values, plan.unread, nil
		}
	}
	plan := new(msrPlan)
	values, err := v.probeMSRs(v.vm.sys.host.msrs, &plan.unread)
	if err != nil {
		return nil, nil, err
	}
	more, err := v.probeMSRs(rangeMSRs, nil)
	if err != nil {
		return nil, nil, err
	}
	// The deadline is relative to the counter, so it is set last.
	values = append(values, more...)
	slices.SortStableFunc(values, func(a, b MSR) int { return msrRank(a) - msrRank(b) })
	for _, m := range values {
		plan.readable = append(plan.readable, m.Index)
	}
	v.vm.msrs.Store(plan)
	return values, plan.unread, nil
}

func msrRank(m MSR) int {
	switch m.Index {
	case msrTSC:
		return 0
	case msrTSCDeadline:
		return 2
	}
	return 1
}

// probeMSRs reads those registers that can be read, and lists the others.
func (v *VCPU) probeMSRs(indices []uint32, unread *[]uint32) ([]MSR, error) {
	var values []MSR
	for len(indices) > 0 {
		got, err := v.getMSRs(indices)
		values = append(values, got...)
		if len(got) == len(indices) {
			break
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		if unread != nil {
			*unread = append(*unread, indices[len(got)])
		}
		indices = indices[len(got)+1:]
	}
	return values, nil
}
