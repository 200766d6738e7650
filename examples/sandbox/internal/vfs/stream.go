//go:build linux && amd64

package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// stream passes one of the host's descriptors through: stdin, stdout, stderr.
// It never closes it. Before each read and write it asks poll(2), so that the
// call that follows does not block; a pipe or terminal that is writable takes
// at least PIPE_BUF bytes, and no more are offered at a time.
type stream struct {
	fd      int  // immutable
	regular bool // immutable: a plain file is always ready and takes any length

	// mu is held from asking to acting: else two guest processes could both be
	// told that the one line is there, and the second would block in read(2).
	mu sync.Mutex

	// reading is held while what was read is delivered; left is what could not be,
	// and is read first.
	reading sync.Mutex
	offset  int // how much has arrived so far; guarded by reading
	leftMu  sync.Mutex
	left    []byte // guarded by leftMu
}

// HostStream returns a description of a host descriptor, and false if it is not open.
func HostStream(fd int) (*Open, bool) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nil, false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, false
	}
	s := &stream{fd: fd, regular: st.Mode&unix.S_IFMT == unix.S_IFREG}
	return NewOpen(s, "", flags&(unix.O_ACCMODE|unix.O_APPEND)), true
}

// FD returns the host's descriptor, for terminal ioctls.
func (s *stream) FD() int { return s.fd }

// Terminal returns the host descriptor behind f if it is one that passes through.
func Terminal(f File) (fd int, ok bool) {
	s, ok := f.(*stream)
	if !ok {
		return 0, false
	}
	return s.fd, true
}

func (s *stream) Close() error { return nil }

func (s *stream) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(s.fd, &st)
	return st, err
}

func (s *stream) ReadAt(p []byte, _ int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) > 0 && s.Ready()&(unix.POLLIN|unix.POLLHUP|unix.POLLERR) == 0 {
		return 0, unix.EAGAIN
	}
	return retry(func() (int, error) { return unix.Read(s.fd, p) })
}

// readTo keeps what has not arrived for the next read: of a plain file by its offset,
// else here, a page at a time, as most who write to pipes have filled them.
func (s *stream) readTo(p []byte, deliver Deliver) (done int, err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for err == nil && done < len(p) {
		n := copy(p[done:], s.rest())
		kept := n > 0
		if !kept {
			if n, err = s.ReadAt(p[done:], 0); n == 0 || err != nil {
				break
			}
		}
		got := 0
		got, err = s.deliver(p[done:done+n], deliver)
		switch {
		case kept:
			s.setRest(s.rest()[got:])
		case s.regular:
			if got < n {
				_, _ = unix.Seek(s.fd, int64(got-n), unix.SEEK_CUR)
			}
		default:
			s.setRest(p[done+got : done+n])
		}
		if done += got; !kept {
			break // more than this one is not waited for
		}
	}
	if done > 0 {
		err = nil
	}
	return done, err
}

func (s *stream) deliver(p []byte, deliver Deliver) (done int, err error) {
	if s.regular {
		return deliver(p)
	}
	for done < len(p) && err == nil {
		size, got := min(len(p)-done, pipeBuf-s.offset%pipeBuf), 0
		if got, err = deliver(p[done : done+size]); got == size {
			done, s.offset = done+got, s.offset+got
		}
	}
	return done, err
}

func (s *stream) rest() []byte {
	s.leftMu.Lock()
	defer s.leftMu.Unlock()
	return s.left
}

func (s *stream) setRest(p []byte) {
	s.leftMu.Lock()
	defer s.leftMu.Unlock()
	s.left = append([]byte(nil), p...)
}

func (s *stream) WriteAt(p []byte, _ int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.regular {
		if s.Ready()&(unix.POLLOUT|unix.POLLERR|unix.POLLHUP) == 0 {
			return 0, unix.EAGAIN
		}
		p = p[:min(len(p), pipeBuf)]
	}
	return retry(func() (int, error) { return unix.Write(s.fd, p) })
}

func (s *stream) Ready() Events {
	if s.regular {
		return unix.POLLIN | unix.POLLOUT
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN | unix.POLLOUT}}
	if _, err := retry(func() (int, error) { return unix.Poll(fds, 0) }); err != nil {
		return unix.POLLERR
	}
	if len(s.rest()) > 0 {
		fds[0].Revents |= unix.POLLIN
	}
	return Events(fds[0].Revents)
}

// Watch polls on a thread of its own until the descriptor is ready for
// anything that it was not ready for at the start, or stop is called.
func (s *stream) Watch(ready chan<- struct{}) (stop func()) {
	var want int16 = unix.POLLIN | unix.POLLOUT
	return watchFD(s.fd, want&^int16(s.Ready()), ready)
}

// EdgeSource answers EPERM for a plain file, as the host does.
func (s *stream) EdgeSource() (EdgeSource, error) { return newHostEdges(s.fd) }

// watchFD polls for want on a thread of its own.
func watchFD(fd int, want int16, ready chan<- struct{}) (stop func()) {
	cancel, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		notify(ready) // out of descriptors: the caller polls instead of sleeping
		return func() {}
	}
	var done sync.WaitGroup
	done.Go(func() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: want}, {Fd: int32(cancel), Events: unix.POLLIN}}
		_, _ = retry(func() (int, error) { return unix.Poll(fds, -1) })
		notify(ready)
	})
	return sync.OnceFunc(func() {
		_, _ = unix.Write(cancel, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		done.Wait()
		unix.Close(cancel)
	})
}

func notify(ready chan<- struct{}) {
	select {
	case ready <- struct{}{}:
	default:
	}
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}
