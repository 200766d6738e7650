//go:build linux

package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/handshake"
)

// A client that comes while there is no room for its descriptors would be lost: the
// kernel drops those that it cannot give a number, and the message does not come
// again. So nobody is let in before there is room; who has connected waits, as in
// the socket's queue, and is served when others have gone. What cannot be foreseen,
// such as that the host has no more files, is told by name when it happens.

const (
	// perClient is what one client may take beyond its connection until it is served:
	// a pidfd and its duplicate, the userfaultfd and its duplicate, an eventfd, another
	// descriptor that came along, and a file of /proc.
	perClient = 7
	// spare is left to who asks for metrics, and to files.
	spare = 8
	// The pace at which room is looked for.
	roomAgain, roomAgainMax = 5 * time.Millisecond, 500 * time.Millisecond
)

// A stall is a time in which no client is let in. It belongs to one goroutine that
// accepts.
type stall struct {
	s     *Server
	why   string // "" while there is none
	begun time.Time
	pause time.Duration
}

// waits notes that nobody can be let in for now, and waits a moment. It returns
// false when the server stops.
func (w *stall) waits(why string, err error) bool {
	if w.why != why {
		w.end()
		w.why, w.begun, w.pause = why, time.Now(), roomAgain
		w.s.o.Metrics.StallBegins(why)
		w.s.o.Log.Warn("clients wait: none can be let in", "reason", why, "err", err)
	}
	timer := time.NewTimer(w.pause)
	defer timer.Stop()
	w.pause = min(2*w.pause, roomAgainMax)
	select {
	case <-timer.C:
		return true
	case <-w.s.stopping:
		return false
	}
}

// end notes that clients are let in again, or never more.
func (w *stall) end() {
	if w.why == "" {
		return
	}
	w.s.o.Metrics.StallEnds()
	select {
	case <-w.s.stopping:
	default:
		w.s.o.Log.Info("clients are let in again", "reason", w.why, "after", time.Since(w.begun).Round(time.Millisecond).String())
	}
	w.why = ""
}

// acceptFailed deals with an error of accept(2), and returns false when there is
// nothing more to accept.
func (w *stall) acceptFailed(err error) bool {
	why := handshake.Shortage(err)
	if why == "" {
		why = "failed"
	}
	return w.waits(why, err)
}

// untilRoom waits until there is room for one client more. It returns false if the
// server stops meanwhile.
func (w *stall) untilRoom() bool {
	for {
		wanted := perClient*w.s.handshakes() + spare
		free, known := freeDescriptors()
		if !known || free >= wanted {
			w.end()
			return true
		}
		err := fmt.Errorf("%w: %d are left, and %d wanted", handshake.ErrOutOfDescriptors, free, wanted)
		if !w.waits(handshake.Name(err), err) {
			return false
		}
	}
}

// handshakes returns how many clients are being let in.
func (s *Server) handshakes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// freeDescriptors returns how many descriptors this process may still open. It needs
// none to find out, from Linux 6.2 on.
func freeDescriptors() (n int, known bool) {
	const dir = "/proc/self/fd"
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<30 {
		return 0, false
	}
	info, err := os.Stat(dir)
	if err != nil {
		return 0, false
	}
	used := info.Size()
	if used == 0 {
		entries, err := os.ReadDir(dir)
		switch {
		case err == nil:
			used = int64(len(entries)) - 1 // the directory itself
		case handshake.Shortage(err) != "":
			return 0, true
		default:
			return 0, false
		}
	}
	return int(limit.Cur) - int(used), true
}

// accept has each connection dealt with until the socket is closed.
func (s *Server) accept(l *socket, deal func(*net.UnixConn)) {
	slots := make(chan struct{}, maxHandshakes)
	w := &stall{s: s}
	defer w.end()
	for {
		slots <- struct{}{}
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			<-slots
			if !w.acceptFailed(err) {
				return
			}
			continue
		}
		if !s.begin(conn) {
			<-slots
			conn.Close()
			return
		}
		if !w.untilRoom() && !s.finishes() {
			s.end(conn)
			<-slots
			conn.Close()
			return
		}
		s.connections.Go(func() {
			defer func() { <-slots }()
			deal(conn)
		})
	}
}
