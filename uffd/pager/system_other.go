//go:build !linux

package pager

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/guestmm/guestmm/uffd"
)

// A Peer needs Linux.
type Peer struct{}

// OpenPeer answers ErrNotSupported.
func OpenPeer(int) (*Peer, error) { return nil, ErrNotSupported }

// PeerFromFD returns a Peer that cannot be killed.
func PeerFromFD(int) *Peer { return &Peer{} }

// Kill answers ErrNotSupported.
func (*Peer) Kill() error { return ErrNotSupported }

// Close does nothing.
func (*Peer) Close() error { return nil }

type waiter struct{ id fileID }

func newWaiter(int, *Peer) (*waiter, error)      { return nil, ErrNotSupported }
func (*waiter) wait(time.Duration) (bool, error) { return false, ErrNotSupported }
func (*waiter) poke()                            {}
func (*waiter) pokeIn(time.Duration)             {}
func (*waiter) close()                           {}
func hearsRemovals(*uffd.FD) bool                { return false }

type shared struct{}

func (*shared) beginRead()       {}
func (*shared) endRead()         {}
func (*shared) cannotFollow()    {}
func (*shared) messages() []byte { return nil }

func (*ledger) share(*os.File, Identity) error { return ErrNotSupported }

// NewLedgerFile answers ErrNotSupported.
func NewLedgerFile() (*os.File, error) { return nil, ErrNotSupported }

// Recover answers ErrNotSupported.
func Recover(*uffd.FD, *os.File) (*Takeover, error) { return nil, ErrNotSupported }

// A FileSource needs Linux; use ReaderSource.
type FileSource struct{}

// NewFileSource answers ErrNotSupported.
func NewFileSource(*os.File, uint64, uint64) (*FileSource, error) { return nil, ErrNotSupported }

// Size returns 0.
func (*FileSource) Size() uint64 { return 0 }

// ReadPages answers ErrNotSupported.
func (*FileSource) ReadPages(context.Context, []byte, uint64) error { return ErrNotSupported }

// A Cache needs Linux.
type Cache struct{ source Source }

// NewCache answers ErrNotSupported.
func NewCache(Source) (*Cache, error) { return nil, ErrNotSupported }

// Size returns 0.
func (*Cache) Size() uint64 { return 0 }

// ReadOnly answers ErrNotSupported.
func (*Cache) ReadOnly() (*os.File, error) { return nil, ErrNotSupported }

// Missing returns 0.
func (*Cache) Missing() uint64 { return 0 }

// Close does nothing.
func (*Cache) Close() error { return nil }

func (*Cache) has(_, _ uint64) bool { return false }

func (*Cache) fetch(context.Context, []byte, uint64, func(context.Context, []byte, uint64) error) error {
	return ErrNotSupported
}

// Send answers ErrNotSupported.
func (*Takeover) Send(*net.UnixConn) error { return ErrNotSupported }

// Sent returns false.
func (*Takeover) Sent() bool { return false }

// Receive answers ErrNotSupported.
func Receive(*net.UnixConn) (*Takeover, error) { return nil, ErrNotSupported }

func sleepShort(d time.Duration) { time.Sleep(d) }
