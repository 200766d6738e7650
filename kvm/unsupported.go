//go:build !(linux && amd64)

package kvm

import (
	"context"

	"github.com/guestmm/guestmm/guestmem"
)

// System is the KVM device; there is none here.
type System struct{}

// Open answers ErrNotSupported: this package needs Linux on x86-64.
func Open() (*System, error) { return nil, unsupported("Open") }

// Close does nothing.
func (*System) Close() error { return nil }

// Platform runs guest threads; it cannot here.
type Platform struct{}

// NewPlatform answers ErrNotSupported.
func NewPlatform(*System, *guestmem.Memory, PlatformOptions) (*Platform, error) {
	return nil, unsupported("NewPlatform")
}

// Run answers ErrNotSupported.
func (*Platform) Run(context.Context, *guestmem.AddressSpace, *Context) (Exit, error) {
	return Exit{}, unsupported("Run")
}

// Close does nothing.
func (*Platform) Close() error { return nil }

// String says so.
func (*Platform) String() string { return "KVM: not supported" }

// NewContext returns a Context that cannot run.
func (*Platform) NewContext() *Context { return &Context{} }

// Context is the user state of one guest thread.
type Context struct{ Regs Regs }

// Clone answers ErrNotSupported.
func (*Context) Clone() (*Context, error) { return nil, unsupported("Clone") }

// Reset does nothing.
func (*Context) Reset() {}

// XSave answers ErrNotSupported.
func (*Context) XSave() ([]byte, error) { return nil, unsupported("XSave") }

// SetXSave answers ErrNotSupported.
func (*Context) SetXSave([]byte) error { return unsupported("SetXSave") }

// Kick does nothing.
func (*Context) Kick() {}

// Close does nothing.
func (*Context) Close() {}

func unsupported(op string) error { return opError(op, ErrNotSupported) }
