//go:build linux

package handshake

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// connected returns the two ends of a stream socket, until the test ends.
func connected(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends[i] = c.(*net.UnixConn)
	}
	if err := ends[1].SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return ends[0], ends[1]
}

// withRoomFor runs fn while n descriptors more can be opened and none beyond.
func withRoomFor(t *testing.T, n int, fn func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var free []int
	for range n + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		free = append(free, fd)
	}
	for _, fd := range free {
		unix.Close(fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free[n]), Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	fn()
}

// A server without room for a descriptor says so, wherever it comes to that, and
// blames no client; it keeps nothing of the client.
func TestOutOfDescriptors(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	client, err := uffd.Open(uffd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	at := testutil.MapAnonymous(t, addr.PageSize)
	message := fmt.Sprintf(`[{"base_host_virt_addr":%d,"size":%d,"offset":0,"page_size":4096}]`, at, addr.PageSize)
	claim := fmt.Sprintf("%d %d %d\n%s", os.Getpid(), client.Fd(), len(message), message)
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	// receive is what a server does up to a point, with room for n more from then on.
	receive := func(n int, message string, fds ...int) func(*testing.T) error {
		return func(t *testing.T) (err error) {
			ours, theirs := connected(t)
			peer, err := PeerOf(theirs)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			if _, _, err := ours.WriteMsgUnix([]byte(message), unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			withRoomFor(t, n, func() {
				var r *Request
				if r, err = Receive(theirs, peer); err == nil {
					r.FD.Close()
				}
			})
			return err
		}
	}
	for _, tc := range []struct {
		name string
		do   func(*testing.T) error
		want string
	}{
		{"a pidfd", func(t *testing.T) (err error) {
			_, theirs := connected(t)
			withRoomFor(t, 0, func() {
				var p *Peer
				if p, err = PeerOf(theirs); err == nil {
					p.Close()
				}
			})
			return err
		}, "out_of_descriptors"},
		{"the userfaultfd that came", receive(0, message, client.Fd()), "out_of_descriptors"},
		{"one of two that came", receive(1, message, pipe[0], client.Fd()), "out_of_descriptors"},
		{"the userfaultfd that is to be fetched", receive(0, claim), "out_of_descriptors"},
		{"a look at it", receive(1, message, client.Fd()), "out_of_descriptors"},
		{"a look at one of two", receive(2, message, client.Fd(), pipe[0]), "out_of_descriptors"},
		{"nothing", receive(3, message, client.Fd()), ""},
		{"too many, which is the client's doing", receive(MaxDescriptors+1, message, slices.Repeat(pipe[:1], MaxDescriptors+2)...), "too_many_descriptors"},
		{"whose memory it is", func(t *testing.T) (err error) {
			_, theirs := connected(t)
			peer, err := PeerOf(theirs)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			withRoomFor(t, 0, func() { err = peer.Owns([]Mapping{{Start: at, Size: addr.PageSize}}) })
			return err
		}, "out_of_descriptors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			left := openNow(t)
			err := tc.do(t)
			if got := Name(err); got != tc.want || (err != nil) != (tc.want != "") {
				t.Errorf("got %v, called %q; want %q", err, got, tc.want)
			}
			// The sockets are closed when this test ends.
			if now := openNow(t); now > left+2 {
				t.Errorf("%d descriptors are open, want %d and the two sockets", now, left)
			}
		})
	}
}

func openNow(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// What is lacking has its name even where the error blames somebody.
func TestShortage(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{ErrPeer, ""},
		{errors.Join(ErrPeer, unix.EPERM), ""},
		{errors.Join(ErrPeer, unix.EMFILE), "out_of_descriptors"},
		{fmt.Errorf("x: %w", unix.ENFILE), "out_of_descriptors"},
		{fmt.Errorf("%w: %w", ErrCutShort, unix.ENOMEM), "out_of_memory"},
		{unix.ENOBUFS, "out_of_memory"},
	} {
		if got := Shortage(tc.err); got != tc.want {
			t.Errorf("%v: %q, want %q", tc.err, got, tc.want)
		}
	}
}
