package pager

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// kernel is what the pager asks of a userfaultfd. *uffd.FD is one; tests
// script others. Copy, Zero and Continue return how many bytes from the start
// on were dealt with, and an error unless that is all of them.
type kernel interface {
	Fd() int
	Read(events []uffd.Event) (int, error)
	Copy(dst addr.HVA, src []byte, fl uffd.Flags) (uint64, error)
	Zero(start addr.HVA, length uint64, fl uffd.Flags) (uint64, error)
	Continue(start addr.HVA, length uint64, fl uffd.Flags) (uint64, error)
	Poison(start addr.HVA, length uint64, fl uffd.Flags) (uint64, error)
	WriteProtect(start addr.HVA, length uint64, fl uffd.Flags) error
	Wake(start addr.HVA, length uint64) error
	Unregister(start addr.HVA, length uint64) error
	Close() error
}

var _ kernel = (*uffd.FD)(nil)

// A readerThrough reads by way of memory that outlives this process.
type readerThrough interface {
	ReadThrough(buf []byte, events []uffd.Event) (int, error)
}

var _ readerThrough = (*uffd.FD)(nil)
