package pager

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
)

// A ledger in a file outlives the process that serves:
//
//	0     8  "GMMLEDG1", written last
//	8     4  1 while events are between the kernel and the states
//	12    4  1 once memory was moved, or its process has forked
//	16    8  length of the description
//	512 512  the kernel's messages, read last
//	4096     the description: that of a Takeover
//	then, on a page of its own, the states of all regions, four bytes a word,
//	each region's from a multiple of 8 on
//
// A process can be killed between any two instructions. What is in the file
// then is right all the same:
//
//   - a claim is one compare-and-swap; whose server has gone it is given back;
//   - a page installed and not recorded was claimed: it answers EEXIST;
//   - a removal is recorded before anything is installed that was read from
//     the image earlier. Events that were taken from the kernel and not
//     recorded are in the file: the kernel itself has written them there, in a
//     read(2) that a signal does not cut short, even SIGKILL. The first mark is
//     set before it and taken back when all that came is recorded; if it is
//     set, whoever goes on records them first. Twice does no harm.
//
// Memory that has moved is found nowhere but in the process that knew of it, and
// a forked child's descriptor died with that: then nobody goes on.
const (
	sharedMagic       = "GMMLEDG1"
	sharedHead        = 4096
	sharedBlobAt      = sharedHead
	sharedReadingAt   = 8
	sharedMovedAt     = 12
	sharedLengthAt    = 16
	sharedMessagesAt  = 512
	sharedSeals       = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	maxSharedBlob     = 1 << 26
	sharedWordsPerAdd = 2 // words that a region's states are rounded up to
)

// A shared is the file of a ledger, mapped until nothing refers to it.
type shared struct {
	mem            []byte
	words          []atomic.Uint32 // all of mem
	reading, moved *atomic.Uint32
}

// NewLedgerFile makes an empty file for GuestOptions.Ledger: a memfd. A process
// that shall go on with the guest when this one is killed gets a duplicate of it,
// and one of the userfaultfd. memfd_create(2), Linux 3.17.
func NewLedgerFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("guestmm-ledger", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, &Error{Op: "make a ledger file", Err: err}
	}
	return os.NewFile(uintptr(fd), "guestmm-ledger"), nil
}

func wordsOf(r *region) int {
	return (r.pages.nWords() + sharedWordsPerAdd - 1) / sharedWordsPerAdd * sharedWordsPerAdd
}

// share moves the ledger's states into a file. Nobody serves it yet.
func (l *ledger) share(f *os.File, image Identity) error {
	if err := l.canLeave(); err != nil {
		return err
	}
	blob := (&Takeover{l: l, image: image}).encode()
	at := sharedWordsAt(uint64(len(blob)))
	size := at
	for _, r := range l.regions {
		size += uint64(wordsOf(r)) * 4
	}
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() != 0 {
		return fmt.Errorf("%w: the ledger file is in use", ErrInvalid)
	}
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, sharedSeals); err != nil {
		return fmt.Errorf("seal the ledger file: %w", err)
	}
	// All of it at once, so that a host without memory answers with an error,
	// and not with SIGBUS later on.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return fmt.Errorf("memory for the ledger file: %w", err)
	}
	if _, err := f.WriteAt(blob, sharedBlobAt); err != nil {
		return err
	}
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(len(blob))), sharedLengthAt); err != nil {
		return err
	}
	s, err := mapShared(f, size)
	if err != nil {
		return err
	}
	words := s.words[at/4:]
	for _, r := range l.regions {
		n := r.pages.nWords()
		r.pages.moveTo(words[:n:n], s)
		words = words[wordsOf(r):]
	}
	l.shared = s
	_, err = f.WriteAt([]byte(sharedMagic), 0)
	return err
}

func sharedWordsAt(blob uint64) uint64 {
	return (sharedBlobAt + blob + smallPage - 1) &^ (smallPage - 1)
}

// Recover makes a Takeover of what a server has left that was killed, or ended
// in any other way: fd is a duplicate of the userfaultfd, and file one of its
// GuestOptions.Ledger. Both stay the caller's. The server's process must have
// ended, and all of its threads with it: see Peer. Never do two serve a guest.
//
// Errors: ErrHandover (not a guest's ledger), ErrLost (the guest's memory had
// moved, or it had forked: what it must see cannot be told, and it has to be
// failed), those of mmap(2), EMFILE. Nothing is kept then.
func Recover(fd *uffd.FD, file *os.File) (*Takeover, error) {
	t, err := recoverFrom(file)
	if err != nil {
		return nil, &Error{Op: "recover a guest", Err: err}
	}
	held, err := fd.Dup()
	if err != nil {
		return nil, &Error{Op: "recover a guest", Guest: t.l.name, Err: err}
	}
	t.l.k = held
	return t, nil
}

func recoverFrom(file *os.File) (*Takeover, error) {
	bad := func(format string, args ...any) (*Takeover, error) {
		return nil, fmt.Errorf("%w: the ledger file "+format, append([]any{ErrHandover}, args...)...)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	// A file that could shrink under its mapping would be the end of us.
	if seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&sharedSeals != sharedSeals {
		return bad("is not sealed: %v", err)
	}
	size := uint64(info.Size())
	if size < sharedHead+smallPage || size%4 != 0 {
		return bad("has %d bytes", size)
	}
	s, err := mapShared(file, size)
	if err != nil {
		return nil, err
	}
	length := binary.LittleEndian.Uint64(s.mem[sharedLengthAt:])
	if string(s.mem[:8]) != sharedMagic || length > maxSharedBlob || sharedWordsAt(length) > size {
		return bad("begins with %q, and a description of %d bytes", s.mem[:8], length)
	}
	blob := make([]byte, length)
	copy(blob, s.mem[sharedBlobAt:])
	t, err := decodeTakeover(blob)
	if err != nil {
		return nil, err
	}
	words := s.words[sharedWordsAt(length)/4:]
	for _, r := range t.l.regions {
		if len(words) < wordsOf(r) {
			return bad("has no room for the states of region %v", r.Region)
		}
		n := r.pages.nWords()
		r.pages.adopt(words[:n:n], s)
		words = words[wordsOf(r):]
		r.pages.recover()
		r.pages.recount()
	}
	t.l.shared = s
	if s.reading.Load() != 0 {
		t.l.taken = uffd.DecodeMessages(s.messages(), t.l.batch[:])
		for i := range t.l.taken {
			if k := t.l.batch[i].Kind; k == uffd.EventFork || k == uffd.EventRemap {
				s.cannotFollow()
			}
		}
	}
	if s.moved.Load() != 0 {
		return nil, fmt.Errorf("%w: the guest's memory had moved, or it had forked", ErrLost)
	}
	// Whoever takes over marks the batch before anything else. The mark stays
	// until its first read, in case that it is killed before.
	return t, nil
}

// messages is where the kernel writes what is read.
func (s *shared) messages() []byte {
	return s.mem[sharedMessagesAt : sharedMessagesAt+uffd.MessageSpace]
}

// beginRead is called before events are taken from the kernel, endRead once all
// of them are recorded.
func (s *shared) beginRead() {
	if s != nil {
		s.reading.Store(1)
	}
}

func (s *shared) endRead() {
	if s != nil {
		s.reading.Store(0)
	}
}

// cannotFollow says that the layout is no longer that of the description.
func (s *shared) cannotFollow() {
	if s != nil {
		s.moved.Store(1)
	}
}
