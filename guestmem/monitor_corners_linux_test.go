package guestmem

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// The corners of userfaultfd are scripts that run twice, at the same addresses: on
// this kernel, and on a Monitor. What they write down is compared.

const cornerBase = 0x3_0000_0000

// cornerPatience is how long what is not to wait may take.
const cornerPatience = time.Minute

// cornerHost is what a script runs on. Addresses are page numbers from cornerBase.
type cornerHost interface {
	open(features uffd.Features) (cornerMonitor, error)
	mapPages(page, n int, shared bool)
	unmap(page, n int) error
	remap(from, old, now, to, flags int) error
	advise(page, n, advice int) error
	protect(page, n, prot int) error
	load(page int) (byte, error)
	store(page int, b byte) error
}

type cornerMonitor interface {
	register(at, length uint64, mode uffd.Mode) (uffd.Ioctls, error)
	unregister(at, length uint64) error
	copy(at uint64, src []byte, fl uffd.Flags) (uint64, error)
	zero(at, length uint64, fl uffd.Flags) (uint64, error)
	cont(at, length uint64, fl uffd.Flags) (uint64, error)
	poison(at, length uint64, fl uffd.Flags) (uint64, error)
	move(dst, src, length uint64, fl uffd.Flags) (uint64, error)
	protect(at, length uint64, fl uffd.Flags) error
	wake(at, length uint64) error
	read() ([]string, error)
	close()
}

// script runs a script on one host.
type script struct {
	t    *testing.T
	h    cornerHost
	m    map[string]cornerMonitor
	log  []string
	busy map[string]chan string
}

func errnoName(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func (c *script) say(format string, args ...any) { c.log = append(c.log, fmt.Sprintf(format, args...)) }

func pageAt(p int) uint64 { return cornerBase + uint64(p)*page }

func (c *script) open(name string, features uffd.Features) {
	m, err := c.h.open(features)
	if err != nil {
		c.t.Fatalf("open: %v", err)
	}
	c.m[name] = m
}

func (c *script) done(what string, n uint64, err error) {
	c.say("%s = %d %s", what, n/page, errnoName(err))
}

func (c *script) reg(m string, p, n int, mode uffd.Mode) {
	io, err := c.m[m].register(pageAt(p), uint64(n)*page, mode)
	if err != nil {
		io = 0
	}
	c.say("%s.register %d+%d %v = %v %s", m, p, n, mode, io, errnoName(err))
}

func (c *script) unreg(m string, p, n int) {
	c.say("%s.unregister %d+%d = %s", m, p, n, errnoName(c.m[m].unregister(pageAt(p), uint64(n)*page)))
}

func (c *script) copy(m string, p, n int, b byte, fl uffd.Flags) {
	done, err := c.m[m].copy(pageAt(p), []byte(strings.Repeat(string(rune(b)), n*page)), fl)
	c.done(fmt.Sprintf("%s.copy %d+%d %v", m, p, n, fl), done, err)
}

func (c *script) zero(m string, p, n int) {
	done, err := c.m[m].zero(pageAt(p), uint64(n)*page, 0)
	c.done(fmt.Sprintf("%s.zero %d+%d", m, p, n), done, err)
}

func (c *script) cont(m string, p, n int, fl uffd.Flags) {
	done, err := c.m[m].cont(pageAt(p), uint64(n)*page, fl)
	c.done(fmt.Sprintf("%s.continue %d+%d %v", m, p, n, fl), done, err)
}

func (c *script) poison(m string, p, n int) {
	done, err := c.m[m].poison(pageAt(p), uint64(n)*page, 0)
	c.done(fmt.Sprintf("%s.poison %d+%d", m, p, n), done, err)
}

func (c *script) move(m string, dst, src, n int, fl uffd.Flags) {
	done, err := c.m[m].move(pageAt(dst), pageAt(src), uint64(n)*page, fl)
	c.done(fmt.Sprintf("%s.move %d<-%d+%d %v", m, dst, src, n, fl), done, err)
}

func (c *script) wp(m string, p, n int, fl uffd.Flags) {
	c.say("%s.wp %d+%d %v = %s", m, p, n, fl, errnoName(c.m[m].protect(pageAt(p), uint64(n)*page, fl)))
}

func (c *script) load(p int) {
	c.t.Helper()
	c.startLoad(p)
	c.soon(fmt.Sprintf("load %d", p))
}

// soon is end for what is not to wait: if it does, that is written down.
func (c *script) soon(name string) {
	select {
	case r := <-c.busy[name]:
		c.say("%s = %s", name, r)
	case <-time.After(cornerPatience):
		c.say("%s waits", name)
	}
}

func (c *script) store(p int, b byte) {
	c.startStore(p, b)
	c.soon(fmt.Sprintf("store %d", p))
}

func (c *script) advise(p, n, advice int) {
	c.say("advise %d+%d %d = %s", p, n, advice, errnoName(c.h.advise(p, n, advice)))
}

func (c *script) unmap(p, n int) { c.say("unmap %d+%d = %s", p, n, errnoName(c.h.unmap(p, n))) }

func (c *script) remap(from, old, now, to, flags int) {
	c.say("remap %d+%d to %d+%d %d = %s", from, old, to, now, flags, errnoName(c.h.remap(from, old, now, to, flags)))
}

// start runs something that waits; end waits for it.
func (c *script) start(name string, fn func() string) {
	done := make(chan string, 1)
	c.busy[name] = done
	go func() { done <- fn() }()
}

func (c *script) startLoad(p int) {
	c.start(fmt.Sprintf("load %d", p), func() string {
		b, err := c.h.load(p)
		return fmt.Sprintf("%d %s", b, errnoName(err))
	})
}

func (c *script) startStore(p int, b byte) {
	c.start(fmt.Sprintf("store %d", p), func() string { return errnoName(c.h.store(p, b)) })
}

func (c *script) end(name string) {
	c.t.Helper()
	select {
	case r := <-c.busy[name]:
		c.say("%s ended = %s", name, r)
	case <-time.After(cornerPatience):
		c.t.Fatalf("%s does not end; so far %s", name, strings.Join(c.log, "\n"))
	}
}

// events waits for n events and writes them down.
func (c *script) events(m string, n int) {
	c.t.Helper()
	var got []string
	for deadline := time.Now().Add(cornerPatience); len(got) < n; {
		more, err := c.m[m].read()
		if err != nil {
			c.t.Fatalf("read: %v", err)
		}
		got = append(got, more...)
		if len(more) == 0 {
			if time.Now().After(deadline) {
				c.t.Fatalf("%d events of %d: %q; so far %s", len(got), n, got, strings.Join(c.log, "\n"))
			}
			time.Sleep(time.Millisecond)
		}
	}
	c.say("%s: %s", m, strings.Join(got, "; "))
}

// unread waits until a change holds installs of pages back, and says so.
func (c *script) unread(m string, p int) {
	c.t.Helper()
	for deadline := time.Now().Add(cornerPatience); ; {
		n, err := c.m[m].zero(pageAt(p), page, uffd.DontWake)
		if errors.Is(err, unix.EAGAIN) {
			c.say("%s is held back, %d", m, n)
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("installs go on: %d %v", n, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// ourHost is a Monitor's.
type ourHost struct{ as *AddressSpace }

func (h ourHost) open(f uffd.Features) (cornerMonitor, error) {
	m, err := h.as.NewMonitor(MonitorOptions{Features: f})
	return ourMonitor(m), err
}

func gvaOf(p int) addr.GVA { return addr.GVA(pageAt(p)) }

func (h ourHost) mapPages(p, n int, shared bool) {
	o := MapOptions{Addr: gvaOf(p), Length: uint64(n) * page, Prot: ProtRead | ProtWrite, Flags: MapFixed | MapAnonymous | MapPrivate}
	if shared {
		o.Flags ^= MapPrivate | MapShared
	}
	if _, err := h.as.Map(ctx, o); err != nil {
		panic(err)
	}
}

func (h ourHost) unmap(p, n int) error { return h.as.Unmap(gvaOf(p), uint64(n)*page) }
func (h ourHost) remap(from, old, now, to, flags int) error {
	_, err := h.as.Remap(ctx, RemapOptions{Addr: gvaOf(from), OldLength: uint64(old) * page, NewLength: uint64(now) * page, Flags: RemapFlags(flags), NewAddr: gvaOf(to)})
	return err
}
func (h ourHost) advise(p, n, advice int) error {
	return h.as.Advise(ctx, gvaOf(p), uint64(n)*page, Advice(advice))
}
func (h ourHost) protect(p, n, prot int) error {
	return h.as.Protect(gvaOf(p), uint64(n)*page, Prot(prot))
}
func (h ourHost) load(p int) (byte, error) {
	var b [1]byte
	_, err := h.as.ReadAt(ctx, b[:], gvaOf(p))
	return b[0], err
}
func (h ourHost) store(p int, b byte) error {
	_, err := h.as.WriteAt(ctx, []byte{b}, gvaOf(p))
	return err
}

// answerer is what a Monitor and a userfaultfd have in common.
type answerer[A ~uint64] interface {
	Register(start A, length uint64, mode uffd.Mode) (uffd.Ioctls, error)
	Unregister(start A, length uint64) error
	Copy(dst A, src []byte, fl uffd.Flags) (uint64, error)
	Zero(start A, length uint64, fl uffd.Flags) (uint64, error)
	Continue(start A, length uint64, fl uffd.Flags) (uint64, error)
	Poison(start A, length uint64, fl uffd.Flags) (uint64, error)
	Move(dst, src A, length uint64, fl uffd.Flags) (uint64, error)
	WriteProtect(start A, length uint64, fl uffd.Flags) error
	Wake(start A, length uint64) error
	Close() error
}

// hostMonitor is a cornerMonitor of either.
type hostMonitor[A ~uint64] struct {
	answerer[A]
	events func() ([]string, error)
}

func (m hostMonitor[A]) register(at, n uint64, mode uffd.Mode) (uffd.Ioctls, error) {
	return m.Register(A(at), n, mode)
}
func (m hostMonitor[A]) unregister(at, n uint64) error { return m.Unregister(A(at), n) }
func (m hostMonitor[A]) copy(at uint64, src []byte, fl uffd.Flags) (uint64, error) {
	return m.Copy(A(at), src, fl)
}
func (m hostMonitor[A]) zero(at, n uint64, fl uffd.Flags) (uint64, error) {
	return m.Zero(A(at), n, fl)
}
func (m hostMonitor[A]) cont(at, n uint64, fl uffd.Flags) (uint64, error) {
	return m.Continue(A(at), n, fl)
}
func (m hostMonitor[A]) poison(at, n uint64, fl uffd.Flags) (uint64, error) {
	return m.Poison(A(at), n, fl)
}
func (m hostMonitor[A]) move(dst, src, n uint64, fl uffd.Flags) (uint64, error) {
	return m.Move(A(dst), A(src), n, fl)
}
func (m hostMonitor[A]) protect(at, n uint64, fl uffd.Flags) error {
	return m.WriteProtect(A(at), n, fl)
}
func (m hostMonitor[A]) wake(at, n uint64) error { return m.Wake(A(at), n) }
func (m hostMonitor[A]) close()                  { m.Close() }
func (m hostMonitor[A]) read() ([]string, error) { return m.events() }

func ourMonitor(m *Monitor) cornerMonitor {
	return hostMonitor[addr.GVA]{m, func() (out []string, err error) {
		var e [4]MonitorEvent
		n, err := m.Read(e[:])
		for i := range e[:n] {
			out = append(out, describe(e[i].Kind, e[i].Flags, uint64(e[i].Addr), uint64(e[i].From), uint64(e[i].To), e[i].Len, uint64(e[i].Start), uint64(e[i].End)))
		}
		return out, err
	}}
}

func kernelMonitor(fd *uffd.FD) cornerMonitor {
	return hostMonitor[addr.HVA]{fd, func() (out []string, err error) {
		var e [4]uffd.Event
		n, err := fd.Read(e[:])
		for i := range e[:n] {
			out = append(out, describe(e[i].Kind, e[i].Flags, uint64(e[i].Addr), uint64(e[i].From), uint64(e[i].To), e[i].Len, uint64(e[i].Start), uint64(e[i].End)))
		}
		return out, err
	}}
}

func describe(k uffd.EventKind, fl uffd.FaultFlags, addr, from, to, length, start, end uint64) string {
	p := func(a uint64) float64 { return float64(int64(a)-cornerBase) / page }
	switch k {
	case uffd.EventFault:
		return fmt.Sprintf("fault %g %v", p(addr), fl)
	case uffd.EventRemap:
		return fmt.Sprintf("remap %g to %g, %g", p(from), p(to), float64(length)/page)
	}
	return fmt.Sprintf("%v %g-%g", k, p(start), p(end))
}

// kernelCorners is the kernel's.
type kernelCorners struct{ t *testing.T }

func (h kernelCorners) open(f uffd.Features) (cornerMonitor, error) {
	fd, err := uffd.Open(uffd.Options{Required: f})
	if err == nil {
		h.t.Cleanup(func() { fd.Close() })
	}
	return kernelMonitor(fd), err
}

func raw(nr uintptr, a ...uint64) error {
	var x [6]uintptr
	for i, v := range a {
		x[i] = uintptr(v)
	}
	if _, _, e := unix.Syscall6(nr, x[0], x[1], x[2], x[3], x[4], x[5]); e != 0 {
		return e
	}
	return nil
}

func (h kernelCorners) mapPages(p, n int, shared bool) {
	flags := uint64(unix.MAP_PRIVATE)
	if shared {
		flags = unix.MAP_SHARED
	}
	if err := raw(unix.SYS_MMAP, pageAt(p), uint64(n)*page, 3, flags|unix.MAP_FIXED|unix.MAP_ANONYMOUS, ^uint64(0), 0); err != nil {
		panic(err)
	}
}
func (h kernelCorners) unmap(p, n int) error { return raw(unix.SYS_MUNMAP, pageAt(p), uint64(n)*page) }
func (h kernelCorners) remap(from, old, now, to, flags int) error {
	return raw(unix.SYS_MREMAP, pageAt(from), uint64(old)*page, uint64(now)*page, uint64(flags), pageAt(to))
}
func (h kernelCorners) advise(p, n, advice int) error {
	return raw(unix.SYS_MADVISE, pageAt(p), uint64(n)*page, uint64(advice))
}
func (h kernelCorners) protect(p, n, prot int) error {
	return raw(unix.SYS_MPROTECT, pageAt(p), uint64(n)*page, uint64(prot))
}
func (h kernelCorners) load(p int) (byte, error) {
	var b [1]byte
	err := testutil.Load(pageAt(p), b[:])
	return b[0], err
}
func (h kernelCorners) store(p int, b byte) error { return testutil.Store(pageAt(p), []byte{b}) }

func TestMonitorCorners(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMove)
	for _, s := range monitorScripts {
		t.Run(s.name, func(t *testing.T) {
			var logs [2][]string
			m := newMemory(t, 4<<20)
			for i, h := range []cornerHost{kernelCorners{t}, ourHost{newSpace(t, m)}} {
				c := &script{t: t, h: h, m: map[string]cornerMonitor{}, busy: map[string]chan string{}}
				s.run(c)
				for _, m := range c.m {
					m.close()
				}
				_ = h.unmap(0, 256)
				logs[i] = c.log
			}
			if diff := cmp.Diff(logs[0], logs[1]); diff != "" {
				t.Errorf("the kernel (-) and the monitor (+) differ:\n%s", diff)
			}
			if testing.Verbose() {
				t.Logf("%s", strings.Join(logs[0], "\n"))
			}
		})
	}
}
