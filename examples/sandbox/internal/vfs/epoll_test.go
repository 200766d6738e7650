//go:build linux && amd64

package vfs

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newTestEpoll(t *testing.T) *Epoll {
	t.Helper()
	before := watched.Load()
	o := NewEpoll()
	t.Cleanup(func() {
		o.Unref()
		if n := watched.Load(); n != before {
			t.Errorf("%d files are counted as watched", n-before)
		}
	})
	return o.File.(*Epoll)
}

// What sets do with pipes, eventfds and timers is compared with Linux itself by
// the sandbox's own test (testdata/epoll.c). Here is what a guest cannot bring about.

// A stream of the host's has the host's own edges.
func TestEpollStreamEdges(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	in, ok := HostStream(p[0])
	if !ok {
		t.Fatal("no stream")
	}
	defer in.Unref()
	e := newTestEpoll(t)
	if err := e.Control(unix.EPOLL_CTL_ADD, 0, in, EpollEvent{unix.EPOLLIN | epollET, 7}); err != nil {
		t.Fatal(err)
	}
	want := func(n int) {
		t.Helper()
		if got := e.Collect(9); len(got) != n || (n > 0 && got[0].EpollEvent != EpollEvent{unix.EPOLLIN, 7}) {
			t.Errorf("got %v, want %d", got, n)
		}
	}
	write := func(s string) {
		t.Helper()
		if _, err := unix.Write(p[1], []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	want(0)
	write("a")
	want(1)
	want(0)
	// The unread byte does not hide the next one from whoever sleeps.
	ready := make(chan struct{}, 1)
	stop := e.Watch(ready)
	write("b")
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Error("nobody was woken")
	}
	stop()
	want(1)
	want(0)
}

func TestEpollPlainFile(t *testing.T) {
	var fd int
	fd, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	o, _ := HostStream(fd)
	defer o.Unref()
	if err := newTestEpoll(t).Control(unix.EPOLL_CTL_ADD, 0, o, EpollEvent{}); err != unix.EPERM {
		t.Errorf("a plain file: %v", err)
	}
}

// Sets in sets are one deep, both ways: no look at a set takes long.
func TestEpollNesting(t *testing.T) {
	sets := make([]*Open, 3)
	for i := range sets {
		sets[i] = NewEpoll()
		defer sets[i].Unref()
	}
	add := func(outer, inner int) error {
		return sets[outer].File.(*Epoll).Control(unix.EPOLL_CTL_ADD, inner, sets[inner], EpollEvent{Events: unix.EPOLLIN})
	}
	if err := add(0, 0); err != unix.EINVAL {
		t.Errorf("in itself: %v", err)
	}
	if err := add(0, 1); err != nil {
		t.Error(err)
	}
	for _, tt := range [][2]int{{1, 0}, {1, 2}, {2, 0}} {
		if err := add(tt[0], tt[1]); err != unix.ELOOP {
			t.Errorf("%d in %d: %v, want ELOOP", tt[1], tt[0], err)
		}
	}
	sets[0].File.(*Epoll).remove(epollKey{1, sets[1]})
	if err := add(1, 2); err != nil {
		t.Errorf("after its removal: %v", err)
	}
}

func TestEpollBound(t *testing.T) {
	e := newTestEpoll(t)
	watched.Add(maxWatched)
	defer watched.Add(-maxWatched)
	o, _ := NewEventFD(0, 0)
	defer o.Unref()
	if err := e.Control(unix.EPOLL_CTL_ADD, 0, o, EpollEvent{}); err != unix.ENOSPC {
		t.Errorf("past the bound: %v", err)
	}
}

// Files that are closed while others look at the set are not used any more.
//
//	Collect                       Unref
//	mu, Ready of the file
//	                              hook: waits for mu, takes the file out
//	                              Close
func TestEpollCloseRace(t *testing.T) {
	e := newTestEpoll(t)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			ready := make(chan struct{}, 1)
			for {
				select {
				case <-done:
					return
				default:
				}
				stop := e.Watch(ready)
				e.Collect(8)
				_ = e.Ready()
				stop()
			}
		})
	}
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			for n := range 500 {
				r, w, err := NewPipe(0)
				if err != nil {
					t.Error(err)
					return
				}
				key := i*1000 + n
				if err := e.Control(unix.EPOLL_CTL_ADD, key, r, EpollEvent{Events: unix.EPOLLIN | epollET}); err != nil {
					t.Error(err)
				}
				_, _ = w.Write([]byte("x"))
				if n%2 == 0 {
					_ = e.Control(unix.EPOLL_CTL_DEL, key, r, EpollEvent{})
				}
				r.Unref()
				w.Unref()
			}
		})
	}
	work.Wait()
	close(done)
	wg.Wait()
	if len(e.items) != 0 {
		t.Errorf("%d files left", len(e.items))
	}
}

// What has run out is there for who looks, whether the host has told of it yet or not;
// and who sleeps is told of it even if another has looked before.
func TestTimerFDIsNeverLate(t *testing.T) {
	buf := make([]byte, 8)
	for range 200 {
		o, err := NewTimerFD(unix.CLOCK_MONOTONIC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := o.File.(*TimerFD)
		ready := make(chan struct{}, 1)
		stop := f.Watch(ready)
		f.Set(time.Now().Add(-time.Millisecond), 0)
		if f.Ready() == 0 {
			t.Error("run out, and nothing to read")
		}
		if left, _ := f.Left(); left != 0 {
			t.Errorf("run out, and %v left", left)
		}
		select {
		case <-ready:
		case <-time.After(time.Minute):
			t.Fatal("nobody was woken")
		}
		if n, err := f.ReadAt(buf, 0); n != 8 || err != nil || binary.LittleEndian.Uint64(buf) != 1 {
			t.Errorf("once: %d, %v, %d", n, err, binary.LittleEndian.Uint64(buf))
		}
		f.Set(time.Now().Add(-time.Second), 10*time.Millisecond)
		if n, err := f.ReadAt(buf, 0); n != 8 || err != nil || binary.LittleEndian.Uint64(buf) < 101 {
			t.Errorf("101 times: %d, %v, %d", n, err, binary.LittleEndian.Uint64(buf))
		}
		if left, _ := f.Left(); left <= 0 || left > 10*time.Millisecond {
			t.Errorf("%v left of 10 ms", left)
		}
		stop()
		o.Unref()
	}
}

func TestTimerFDCountsWhatWasMissed(t *testing.T) {
	o, err := NewTimerFD(unix.CLOCK_MONOTONIC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := o.File.(*TimerFD)
	f.Set(time.Now().Add(-time.Second), 10*time.Millisecond) // 100 intervals ago
	ready := make(chan struct{}, 1)
	stop := f.Watch(ready)
	for f.Ready() == 0 {
		<-ready
	}
	stop()
	buf := make([]byte, 8)
	if n, err := f.ReadAt(buf, 0); n != 8 || err != nil || binary.LittleEndian.Uint64(buf) < 100 {
		t.Errorf("%d, %v, %d", n, err, binary.LittleEndian.Uint64(buf))
	}
	o.Unref()
	if left, _ := f.Left(); left != 0 {
		t.Errorf("closed, and armed still: %v", left)
	}
}
