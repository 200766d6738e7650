//go:build amd64 || arm64

package floor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Measure measures package uffd; and in the rows about whole guests, package pager.
func (p *Program) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	runtime.GC() // what others left behind is not this round's
	switch {
	case guests(row) > 0:
		return p.manyGuests(guests(row))
	case strings.HasPrefix(row.Name, callsPrefix):
		return p.ownCalls(strings.TrimPrefix(row.Name, callsPrefix))
	case strings.HasPrefix(row.Name, restorePrefix):
		return p.restored(mode(row), pagesOf(row, budget))
	}
	switch mode(row) {
	case "bulk=64KiB":
		return bulk(pages(budget))
	case "arm=1GiB":
		if p.armable == nil {
			var err error
			if p.armable, err = newArmable(armSize); err != nil {
				return workload.Figure{}, err
			}
		}
		return p.armable.arm()
	default:
		return p.roundTrips(mode(row), pages(budget))
	}
}

// Finish lets go of what Measure has kept for the next round.
func (p *Program) Finish() error {
	a := p.armable
	p.armable = nil
	if a == nil {
		return nil
	}
	return a.close()
}

// roundTrips has the program's guest fault, and serves it from this process.
func (p *Program) roundTrips(mode string, pages int) (fig workload.Figure, err error) {
	g, err := p.startGuest(mode, pages)
	if err != nil {
		return fig, err
	}
	served := make(chan error, 1)
	w, err := g.fd.NewWaiter()
	if err == nil {
		go func() { served <- serve(g.fd, w, mode == "zeropage") }()
		err = g.start()
	}
	fig, err = g.finish(err)
	if w != nil {
		err = errors.Join(err, w.Close(), <-served)
	}
	return fig, err
}

// receive takes the guest's userfaultfd, and where its memory begins.
func receive(socket *os.File) (net.Conn, *uffd.FD, addr.HVA, error) {
	c, err := net.FileConn(socket)
	if err != nil {
		return nil, nil, 0, err
	}
	base, oob := make([]byte, 8), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(base, oob)
	var fds []int
	if err == nil {
		var msgs []unix.SocketControlMessage
		if msgs, err = unix.ParseSocketControlMessage(oob[:n]); err == nil && len(msgs) == 1 {
			fds, err = unix.ParseUnixRights(&msgs[0])
		}
	}
	if err == nil && (len(fds) != 1 || binary.NativeEndian.Uint64(base) == 0) {
		err = errors.New("it has sent no userfaultfd")
	}
	var f *uffd.FD
	if err == nil {
		f, err = uffd.FromFD(fds[0])
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		c.Close()
		return nil, nil, 0, err
	}
	return c, f, addr.HVA(binary.NativeEndian.Uint64(base)), nil
}

// serve answers faults until w is closed: the loop whose cost is measured.
func serve(f *uffd.FD, w *uffd.Waiter, zero bool) error {
	content := make([]byte, pageSize)
	for i := range content {
		content[i] = 7
	}
	var events [16]uffd.Event
	for {
		n, err := w.Wait(events[:], -1)
		if errors.Is(err, uffd.ErrClosed) {
			return nil
		}
		for i := range events[:n] {
			if err == nil {
				err = answer(f, &events[i], content, zero)
			}
		}
		if err != nil {
			return err
		}
	}
}

func answer(f *uffd.FD, e *uffd.Event, content []byte, zero bool) (err error) {
	at := e.Page(pageSize)
	switch {
	case e.Kind != uffd.EventFault:
	case e.Flags&uffd.FaultWP != 0:
		err = f.WriteProtect(at, pageSize, 0)
	case e.Flags&uffd.FaultMinor != 0:
		_, err = f.Continue(at, pageSize, 0)
	case zero:
		_, err = f.Zero(at, pageSize, 0)
	default:
		_, err = f.Copy(at, content, 0)
	}
	return err
}

// bulk installs pages in runs of 64 KiB into memory of this process that nobody
// touches.
func bulk(pages int) (fig workload.Figure, err error) {
	size := uint64(pages) * pageSize
	f, err := uffd.Open(uffd.Options{})
	if err != nil {
		return fig, err
	}
	defer f.Close()
	at, err := mapped(size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	if err != nil {
		return fig, err
	}
	defer unix.Syscall(unix.SYS_MUNMAP, uintptr(at), uintptr(size), 0)
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(at), uintptr(size), unix.MADV_NOHUGEPAGE); errno != 0 && errno != unix.EINVAL {
		return fig, fmt.Errorf("madvise: %w", errno)
	}
	if _, err := f.Register(at, size, uffd.Missing); err != nil {
		return fig, err
	}
	src := make([]byte, bulkRun*pageSize)
	for i := range src {
		src[i] = 1
	}
	start := time.Now()
	for done := uint64(0); done < size; done += uint64(len(src)) {
		if _, err := f.Copy(at+addr.HVA(done), src, 0); err != nil {
			return fig, err
		}
	}
	return figure(time.Since(start), pages), nil
}

// An armable is shared memory that is all there, and is write-protected in one call.
type armable struct {
	fd    *uffd.FD
	at    addr.HVA
	size  uint64
	armed bool
}

func newArmable(size uint64) (_ *armable, err error) {
	f, err := uffd.Open(uffd.Options{Required: uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem})
	if err != nil {
		return nil, err
	}
	a := &armable{fd: f, size: size}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	fd, err := unix.MemfdCreate("floor", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, fmt.Errorf("ftruncate: %w", err)
	}
	if a.at, err = mapped(size, unix.MAP_SHARED, fd); err != nil {
		return nil, err
	}
	if err := a.populate(); err != nil {
		return nil, err
	}
	_, err = f.Register(a.at, size, uffd.WP)
	return a, err
}

// populate makes every page writable in the page tables.
func (a *armable) populate() error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(a.at), uintptr(a.size), unix.MADV_POPULATE_WRITE); errno != 0 {
		return fmt.Errorf("populate: %w", errno)
	}
	return nil
}

func (a *armable) arm() (fig workload.Figure, err error) {
	if a.armed { // in the round before
		if err := a.fd.WriteProtect(a.at, a.size, 0); err != nil {
			return fig, err
		}
		if err := a.populate(); err != nil {
			return fig, err
		}
	}
	start := time.Now()
	if err := a.fd.WriteProtect(a.at, a.size, uffd.Armed); err != nil {
		return fig, err
	}
	a.armed = true
	return figure(time.Since(start), 1), nil
}

func (a *armable) close() error {
	err := a.fd.Close()
	if a.at != 0 {
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(a.at), uintptr(a.size), 0); errno != 0 {
			err = errors.Join(err, fmt.Errorf("munmap: %w", errno))
		}
	}
	return err
}

func figure(took time.Duration, ops int) workload.Figure {
	return workload.Figure{PerOp: float64(took.Nanoseconds()) / float64(ops), Ops: ops}
}

// mapped maps memory that is known by its address alone.
func mapped(size uint64, flags, fd int) (addr.HVA, error) {
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, uintptr(flags), uintptr(fd), 0)
	if errno != 0 {
		return 0, fmt.Errorf("mmap: %w", errno)
	}
	return addr.HVA(at), nil
}
