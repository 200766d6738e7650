//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// The standard format of an XSAVE image (Intel SDM vol. 1, 13.4).
const (
	xsaveFCW       = 0
	xsaveMXCSR     = 24
	xsaveMXCSRMask = 28
	xsaveHeader    = 512 // XSTATE_BV
	xsaveXCompBV   = 520
	xsaveEnd       = 576 // of the header
	mxcsrValid     = 0xffbf
)

// resetXSave writes the state of a new program: FCW 0x37f, MXCSR 0x1f80, the
// rest in its initial configuration.
func resetXSave(x []byte) {
	clear(x)
	binary.LittleEndian.PutUint16(x[xsaveFCW:], 0x37f)
	binary.LittleEndian.PutUint32(x[xsaveMXCSR:], 0x1f80)
	binary.LittleEndian.PutUint64(x[xsaveHeader:], xfeatX87|xfeatSSE)
}

// cleanXSave makes an image that a guest had in its hands one that the kernel
// accepts: unknown components and reserved bits go.
func cleanXSave(x []byte, xcr0 uint64) {
	bv := binary.LittleEndian.Uint64(x[xsaveHeader:])
	binary.LittleEndian.PutUint64(x[xsaveHeader:], bv&xcr0)
	clear(x[xsaveXCompBV:xsaveEnd])
	mxcsr := binary.LittleEndian.Uint32(x[xsaveMXCSR:])
	binary.LittleEndian.PutUint32(x[xsaveMXCSR:], mxcsr&mxcsrValid)
}

// saveVector is KVM_GET_XSAVE2, or KVM_GET_XSAVE where images have 4096 bytes.
//
// Preconditions:
//   - len(x) is the VM's xsaveLen.
func (v *vcpu) saveVector(x []byte) error {
	req := reqGetXSave
	if len(x) > 4096 {
		req = reqGetXSave2
	}
	return opError("KVM_GET_XSAVE", ioctlBytes(v.fd, req, x))
}

// loadVector is KVM_SET_XSAVE.
func (v *vcpu) loadVector(x []byte) error {
	return opError("KVM_SET_XSAVE", ioctlBytes(v.fd, reqSetXSave, x))
}

// checkXSaveLen refuses an image of the wrong size.
func checkXSaveLen(got, want int) error {
	if got != want {
		return opError("SetXSave", fmt.Errorf("%w: %d bytes, want %d", unix.EINVAL, got, want))
	}
	return nil
}
