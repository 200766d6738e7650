//go:build !linux || !(amd64 || arm64)

package uffd

import (
	"iter"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Via says how a userfaultfd is opened.
type Via uint8

// The ways, none of which this system has.
const (
	ViaAny Via = iota
	ViaDevice
	ViaSyscall
)

// Options are what a userfaultfd is opened with.
type Options struct {
	Required, Optional Features
	Via                Via
	UserModeOnly       bool
}

// FD is a userfaultfd; there is none on this system.
type FD struct{}

// Open answers ErrNotSupported.
func Open(Options) (*FD, error) { return nil, unsupported("open") }

// Available answers ErrNotSupported.
func Available(Options) (Features, error) { return 0, unsupported("ask for features") }

// FromFD answers ErrNotSupported.
func FromFD(int) (*FD, error) { return nil, unsupported("take over descriptor") }

// Fd returns -1.
func (*FD) Fd() int { return -1 }

// Features returns none.
func (*FD) Features() Features { return 0 }

// UserModeOnly returns false.
func (*FD) UserModeOnly() bool { return false }

// Dup answers ErrNotSupported.
func (*FD) Dup() (*FD, error) { return nil, unsupported("dup") }

// Pending answers ErrNotSupported.
func (*FD) Pending() (waiting, unread int, err error) { return 0, 0, unsupported("read fdinfo") }

// Close does nothing.
func (*FD) Close() error { return nil }

// MessageSpace is how many bytes ReadThrough wants.
const MessageSpace = 512

// ReadThrough answers ErrNotSupported.
func (*FD) ReadThrough([]byte, []Event) (int, error) { return 0, unsupported("read") }

// DecodeMessages finds nothing.
func DecodeMessages([]byte, []Event) int { return 0 }

// Read answers ErrNotSupported.
func (*FD) Read([]Event) (int, error) { return 0, unsupported("read") }

// Register answers ErrNotSupported.
func (*FD) Register(addr.HVA, uint64, Mode) (Ioctls, error) { return 0, unsupported("register") }

// Unregister answers ErrNotSupported.
func (*FD) Unregister(addr.HVA, uint64) error { return unsupported("unregister") }

// Wake answers ErrNotSupported.
func (*FD) Wake(addr.HVA, uint64) error { return unsupported("wake") }

// WriteProtect answers ErrNotSupported.
func (*FD) WriteProtect(addr.HVA, uint64, Flags) error { return unsupported("write-protect") }

// ArmEach answers ErrNotSupported.
func (*FD) ArmEach(iter.Seq2[addr.HVA, uint64]) error { return unsupported("write-protect") }

// Copy answers ErrNotSupported.
func (*FD) Copy(addr.HVA, []byte, Flags) (uint64, error) { return 0, unsupported("copy") }

// CopyFrom answers ErrNotSupported.
func (*FD) CopyFrom(_, _ addr.HVA, _ uint64, _ Flags) (uint64, error) { return 0, unsupported("copy") }

// Zero answers ErrNotSupported.
func (*FD) Zero(addr.HVA, uint64, Flags) (uint64, error) { return 0, unsupported("zero") }

// Continue answers ErrNotSupported.
func (*FD) Continue(addr.HVA, uint64, Flags) (uint64, error) { return 0, unsupported("continue") }

// Poison answers ErrNotSupported.
func (*FD) Poison(addr.HVA, uint64, Flags) (uint64, error) { return 0, unsupported("poison") }

// Move answers ErrNotSupported.
func (*FD) Move(_, _ addr.HVA, _ uint64, _ Flags) (uint64, error) { return 0, unsupported("move") }

// Filled counts what became of a range, in bytes.
type Filled struct{ Installed, Existed uint64 }

// Done returns how many bytes from the start on are there now.
func (n Filled) Done() uint64 { return n.Installed + n.Existed }

// Fill answers ErrNotSupported.
func (*FD) Fill(addr.HVA, []byte, uint64, Flags) (Filled, error) {
	return Filled{}, unsupported("fill")
}

// FillZero answers ErrNotSupported.
func (*FD) FillZero(addr.HVA, uint64, uint64, Flags) (Filled, error) {
	return Filled{}, unsupported("fill")
}

// FillContinue answers ErrNotSupported.
func (*FD) FillContinue(addr.HVA, uint64, uint64, Flags) (Filled, error) {
	return Filled{}, unsupported("fill")
}

// A Waiter waits for events; there are none on this system.
type Waiter struct{}

// NewWaiter answers ErrNotSupported.
func (*FD) NewWaiter() (*Waiter, error) { return nil, unsupported("make a waiter") }

// WatchPeer does nothing.
func (*Waiter) WatchPeer(int) {}

// Wait answers ErrNotSupported.
func (*Waiter) Wait([]Event, time.Duration) (int, error) { return 0, unsupported("wait") }

// Nudge does nothing.
func (*Waiter) Nudge() {}

// Close does nothing.
func (*Waiter) Close() error { return nil }

// Pagemap looks into a page table; it cannot on this system.
type Pagemap struct{}

// OpenPagemap answers ErrNotSupported.
func OpenPagemap(int) (*Pagemap, error) { return nil, unsupported("open pagemap") }

// Close does nothing.
func (*Pagemap) Close() error { return nil }

// Scan answers ErrNotSupported.
func (*Pagemap) Scan(_, _ addr.HVA, _ Selection, _ func(Run)) error {
	return unsupported("scan pagemap")
}

func tryUserfaultfd() error   { return ErrNotSupported }
func tryDevice() error        { return ErrNotSupported }
func tryMissingShmem() error  { return ErrNotSupported }
func tryMinorShmem() error    { return ErrNotSupported }
func tryWPAnonymous() error   { return ErrNotSupported }
func tryWPShmem() error       { return ErrNotSupported }
func tryWPUnpopulated() error { return ErrNotSupported }
func tryWPAsync() error       { return ErrNotSupported }
func tryPagemapScan() error   { return ErrNotSupported }
func tryMove() error          { return ErrNotSupported }
func tryPoison() error        { return ErrNotSupported }
func tryExactAddress() error  { return ErrNotSupported }
func tryThreadID() error      { return ErrNotSupported }
func tryEventRemove() error   { return ErrNotSupported }
func tryEventRemap() error    { return ErrNotSupported }
func tryEventUnmap() error    { return ErrNotSupported }
func tryEventFork() error     { return ErrNotSupported }
func tryHugetlb() error       { return ErrNotSupported }
func tryHugetlbMinor() error  { return ErrNotSupported }
func tryHugetlbWP() error     { return ErrNotSupported }

// thisHost knows nothing of a system that is not Linux.
func thisHost() *host {
	return &host{
		read:         func(string) (string, error) { return "", ErrNotSupported },
		release:      func() (string, error) { return "", ErrNotSupported },
		newMemfd:     func() error { return ErrNotSupported },
		kvmExtension: func(int) (int, error) { return 0, ErrNotSupported },
	}
}

func unsupported(op string) error { return opError(op, ErrNotSupported) }
