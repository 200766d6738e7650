//go:build linux && amd64

package vfs

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

func newTestPipe(t *testing.T) (r, w *Open) {
	t.Helper()
	before := openPipes.Load()
	r, w, err := NewPipe(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.refs.Load() > 0 {
			r.Unref()
		}
		if w.refs.Load() > 0 {
			w.Unref()
		}
		if n := openPipes.Load(); n != before {
			t.Errorf("%d pipes are counted as open", n-before)
		}
	})
	return r, w
}

func TestPipeCarriesBytes(t *testing.T) {
	r, w := newTestPipe(t)
	buf := make([]byte, 10)
	if _, err := r.Read(buf); err != unix.EAGAIN {
		t.Errorf("an empty pipe: %v", err)
	}
	if n, err := w.Write([]byte("hello")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := r.Read(buf[:2]); n != 2 || err != nil || string(buf[:2]) != "he" {
		t.Fatal(n, err)
	}
	if n, err := r.Read(buf); n != 3 || err != nil || string(buf[:3]) != "llo" {
		t.Fatal(n, err)
	}
	w.Unref()
	if n, err := r.Read(buf); n != 0 || err != nil {
		t.Errorf("after the last writer: %d, %v; want the end", n, err)
	}
}

// Up to PIPE_BUF bytes go in whole or not at all; more may be cut.
func TestPipeAtomicity(t *testing.T) {
	r, w := newTestPipe(t)
	if n, err := w.Write(make([]byte, pipeSize-100)); n != pipeSize-100 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := w.Write(make([]byte, 101)); err != unix.EAGAIN {
		t.Errorf("a short write into 100 bytes of room: %d, %v", n, err)
	}
	if r.Ready()&unix.POLLIN == 0 || w.Ready()&unix.POLLOUT != 0 {
		t.Errorf("ready: %#x and %#x", r.Ready(), w.Ready())
	}
	if n, err := w.Write(make([]byte, pipeBuf+1)); n != 1 || err != nil {
		t.Errorf("a long write, of which a byte goes into the last page: %d, %v", n, err)
	}
	if n, err := w.Write(make([]byte, 99)); n != 99 || err != nil {
		t.Errorf("what fills the last page: %d, %v", n, err)
	}
	if _, err := w.Write([]byte{1}); err != unix.EAGAIN {
		t.Errorf("a full pipe: %v", err)
	}
	r.Unref()
	if _, err := w.Write([]byte{1}); err != unix.EPIPE {
		t.Errorf("without a reader: %v", err)
	}
	if w.Ready()&unix.POLLERR == 0 {
		t.Error("without a reader: no POLLERR")
	}
}

func TestPipeOrderAcrossWraps(t *testing.T) {
	r, w := newTestPipe(t)
	var in, out bytes.Buffer
	next := byte(0)
	for range 500 {
		p := make([]byte, 700)
		for i := range p {
			p[i] = next
			next++
		}
		if n, err := w.Write(p); err == nil {
			in.Write(p[:n])
		} else {
			next -= byte(700 % 256)
		}
		q := make([]byte, 650)
		n, err := r.Read(q)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(q[:n])
	}
	w.Unref()
	for {
		q := make([]byte, 5000)
		n, err := r.Read(q)
		if err != nil || n == 0 {
			break
		}
		out.Write(q[:n])
	}
	if !bytes.Equal(in.Bytes(), out.Bytes()) {
		t.Errorf("%d bytes went in, %d others came out", in.Len(), out.Len())
	}
}

func TestPipeWakes(t *testing.T) {
	r, w := newTestPipe(t)
	ready := make(chan struct{}, 1)
	stop := r.Watch(ready)
	stop2 := r.Watch(ready)
	stop2()
	if _, err := w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ready:
	default:
		t.Error("a write woke nobody")
	}
	stop()
	stop()
	w.Unref()
	select {
	case <-ready:
		t.Error("woken after stop")
	default:
	}
}

func TestPipesAreBounded(t *testing.T) {
	var all []*Open
	for range maxPipes + 1 {
		r, w, err := NewPipe(0)
		if err != nil {
			break
		}
		all = append(all, r, w)
	}
	if len(all) != 2*maxPipes {
		t.Errorf("%d pipes, want %d", len(all)/2, maxPipes)
	}
	for _, o := range all {
		o.Unref()
	}
	if n := openPipes.Load(); n != 0 {
		t.Errorf("%d pipes are counted as open", n)
	}
}
