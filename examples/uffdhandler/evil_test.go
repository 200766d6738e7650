//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
)

// evils are ways of being wrong, and what the server must call each.
var evils = map[string]string{
	"not JSON":                    "bad_message",
	"an object":                   "bad_message",
	"no regions":                  "bad_message",
	"null":                        "bad_message",
	"negative size":               "bad_message",
	"members lacking":             "bad_message",
	"a first line of nonsense":    "bad_message",
	"deeply nested":               "bad_message",
	"endless":                     "too_long",
	"length of the line too long": "too_long",
	"cut short":                   "cut_short",
	"nothing at all":              "cut_short",
	"cut in a descriptor's piece": "cut_short",
	"silent":                      "timeout",
	"half, then silent":           "timeout",
	"no descriptor, and waits":    "timeout",
	"no descriptor":               "no_descriptor",
	"a file":                      "bad_descriptor",
	"a pipe":                      "bad_descriptor",
	"not negotiated":              "bad_descriptor",
	"two userfaultfds":            "bad_descriptor",
	"a descriptor that is not":    "bad_descriptor",
	"300 descriptors":             "too_many_descriptors",
	"20 descriptors":              "too_many_descriptors",
	"another's pid":               "bad_peer",
	"another's memory":            "bad_peer",
	"overlapping":                 "overlapping_regions",
	"the same twice":              "beyond_file",
	"enormous":                    "beyond_file",
	"beyond the file":             "beyond_file",
	"unaligned":                   "bad_regions",
	"address overflows":           "bad_regions",
	"offset overflows":            "bad_regions",
	"empty region":                "bad_regions",
	"odd page size":               "bad_regions",
}

// evil is what such a VMM does. It answers once the server has hung up.
func (v *vmm) evil(what string) error {
	if where, dies := strings.CutPrefix(what, "dies "); dies {
		return v.dieAt(where)
	}
	if err := v.restore(); err != nil {
		return err
	}
	if err := v.dial(); err != nil {
		return err
	}
	if err := v.misbehave(what); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	b := make([]byte, 1)
	if n, err := v.conn.Read(b); n > 0 || err == nil {
		return fmt.Errorf("the server has answered %q", b)
	}
	return nil
}

func (v *vmm) send(message string, fds ...int) error {
	_, _, err := v.conn.WriteMsgUnix([]byte(message), unix.UnixRights(fds...), nil)
	return err
}

func (v *vmm) misbehave(what string) error {
	fd := v.fd.Fd()
	good := string(v.message())
	at := uint64(0x7f0000000000)
	if len(v.regions) > 0 {
		at = v.regions[0].at
	}
	regions := func(lists ...[4]uint64) string {
		var out []string
		for _, r := range lists {
			out = append(out, fmt.Sprintf(`{"base_host_virt_addr":%d,"size":%d,"offset":%d,"page_size":%d}`, r[0], r[1], r[2], r[3]))
		}
		return "[" + strings.Join(out, ",") + "]"
	}
	switch what {
	case "not JSON":
		return v.send("hello", fd)
	case "an object":
		return v.send(`{"base_host_virt_addr":1}`, fd)
	case "no regions":
		return v.send("[]", fd)
	case "null":
		return v.send("[null]", fd)
	case "negative size":
		return v.send(`[{"base_host_virt_addr":4096,"size":-4096,"offset":0}]`, fd)
	case "members lacking":
		return v.send(`[{"base_host_virt_addr":4096,"size":4096}]`, fd)
	case "a first line of nonsense":
		return v.send("12 x 9\n"+good, fd)
	case "deeply nested":
		return v.send(strings.Repeat("[", 20000)+strings.Repeat("]", 20000), fd)
	case "endless":
		for {
			if err := v.send("[" + strings.Repeat(" ", 1<<16)); err != nil {
				return err
			}
		}
	case "length of the line too long":
		return v.send(fmt.Sprintf("%d %d 9999999\n", os.Getpid(), fd))
	case "cut short", "cut in a descriptor's piece":
		var fds []int
		if what != "cut short" {
			fds = []int{fd}
		}
		if err := v.send(good[:len(good)/2], fds...); err != nil {
			return err
		}
		return v.conn.CloseWrite()
	case "nothing at all":
		return v.conn.CloseWrite()
	case "silent":
		return nil
	case "half, then silent":
		return v.send(good[:len(good)/2], fd)
	case "no descriptor, and waits":
		return v.send(good)
	case "no descriptor":
		if err := v.send(good); err != nil {
			return err
		}
		return v.conn.CloseWrite()
	case "a file", "a pipe", "not negotiated", "two userfaultfds", "300 descriptors", "20 descriptors":
		return v.sendWrong(what, good)
	case "a descriptor that is not":
		return v.send(fmt.Sprintf("%d %d %d\n%s", os.Getpid(), 9999, len(good), good))
	case "another's pid":
		return v.send(fmt.Sprintf("%d %d %d\n%s", os.Getppid(), fd, len(good), good), fd)
	case "another's memory":
		return v.send(regions([4]uint64{0x10000, page, 0, page}), fd)
	case "overlapping":
		return v.send(regions([4]uint64{at, 2 * page, 0, page}, [4]uint64{at + page, 2 * page, 2 * page, page}), fd)
	case "the same twice":
		n := v.regions[0].N * page
		return v.send(regions([4]uint64{at, n, 0, page}, [4]uint64{at + n, n, 0, page}, [4]uint64{at + 2*n, n, 0, page}), fd)
	case "enormous":
		return v.send(regions([4]uint64{at, 1 << 46, 0, page}), fd)
	case "beyond the file":
		return v.send(regions([4]uint64{at, 4 * page, (v.regions[0].N*2 - 2) * page, page}), fd)
	case "unaligned":
		return v.send(regions([4]uint64{at + 8, page, 0, page}), fd)
	case "address overflows":
		return v.send(regions([4]uint64{^uint64(page - 1), 2 * page, 0, page}), fd)
	case "offset overflows":
		return v.send(regions([4]uint64{at, 2 * page, ^uint64(page - 1), page}), fd)
	case "empty region":
		return v.send(regions([4]uint64{at, 0, 0, page}), fd)
	case "odd page size":
		return v.send(regions([4]uint64{at, 4 * page, 0, 2 * page}), fd)
	}
	return fmt.Errorf("no way of being wrong: %q", what)
}

// sendWrong sends descriptors that are not what they should be.
func (v *vmm) sendWrong(what, message string) error {
	p := make([]int, 2)
	if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
		return err
	}
	repeat := func(n int) (fds []int) {
		for range n {
			fds = append(fds, p[0])
		}
		return fds
	}
	switch what {
	case "a file":
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			return err
		}
		return v.send(message, int(f.Fd()))
	case "a pipe":
		return v.send(message, p...)
	case "not negotiated":
		fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
		if errno != 0 {
			return errno
		}
		return v.send(message, int(fd))
	case "two userfaultfds":
		other, err := uffd.Open(uffd.Options{})
		if err != nil {
			return err
		}
		return v.send(message, v.fd.Fd(), other.Fd())
	case "20 descriptors":
		return v.send(message, append(repeat(19), v.fd.Fd())...)
	}
	if err := v.send(message[:1], repeat(150)...); err != nil {
		return err
	}
	return v.send(message[1:], repeat(150)...)
}

// steps of the protocol after which a VMM may die.
var deaths = []string{"mapped", "connected", "half a message", "message", "message and descriptor", "first fault"}

func (v *vmm) dieAt(where string) error {
	good := func() string { return string(v.message()) }
	steps := []func() error{
		v.restore,
		v.dial,
		func() error { return v.send(good()[:9]) },
		func() error { return v.send(good()[9:]) },
		func() error { return v.send("x", v.fd.Fd()) },
		func() error { return errors.Join(v.boot(), v.check(v.from(3, 1))) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if where == deaths[i] {
			break
		}
	}
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// Clients that are wrong in every way come between good ones. Each gets its
// name, nothing of them is kept, and the good ones do not notice.
func TestBadClientsHarmNobody(t *testing.T) {
	needHost(t)
	const n, seed = 256, 9
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-metrics", ":0", "-handshake-timeout", "2s", "-fill=false")
	good := restored(t, whole(sock, n, seed))
	h.waitFor("serving") // a VMM goes on before the server has looked at it
	before := h.fds()
	want := make(map[string]float64)
	groups := make([][]string, 4) // the last one is for those that take time
	for evil, name := range evils {
		want[name]++
		i := len(groups) - 1
		if name != "timeout" {
			i = int(want[name]) % i
		}
		groups[i] = append(groups[i], evil)
	}
	var bad []*client
	for _, evil := range groups {
		c := whole(sock, n, seed)
		c.Evil = evil
		bad = append(bad, start(t, c))
	}
	for i, v := range bad {
		good.does("random 20 %d", i)
		for _, evil := range groups[i] {
			v.wantsOf(evil)
		}
		v.quits()
	}
	m := h.metrics()
	for name, n := range want {
		if got := m[fmt.Sprintf("uffdhandler_clients_total{outcome=%q}", name)]; got != n {
			t.Errorf("%v clients are counted as %s, want %v", got, name, n)
		}
	}
	for _, d := range deaths {
		c := whole(sock, n, seed)
		c.Evil = []string{"dies " + d}
		start(t, c).dies()
	}
	good.does("verify")
	h.keepsNoMoreThan(before)
	for _, e := range h.entries("client refused") {
		if e["reason"] == "failed" {
			t.Errorf("a cause without a name: %v", e["err"])
		}
	}
	good.quits()
	h.stop()
}

// wantsOf wants a VMM that was wrong to have found the server's end hung up.
func (v *client) wantsOf(evil string) {
	v.t.Helper()
	v.t.Run(evil, func(t *testing.T) {
		one := *v
		one.t = t
		one.wants("ok")
	})
}

// A socket that is held open by many keeps nobody out for long.
func TestManySilentClients(t *testing.T) {
	needHost(t)
	const n, seed = 64, 10
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-handshake-timeout", "500ms")
	before := h.fds()
	var open []*vmm
	for range 200 {
		v := &vmm{c: vmmConfig{Socket: sock}}
		if err := v.dial(); errors.Is(err, unix.EAGAIN) {
			break // the queue is full
		} else if err != nil {
			t.Fatal(err)
		}
		open = append(open, v)
	}
	v := restored(t, whole(sock, n, seed))
	v.does("verify")
	v.quits()
	for _, v := range open {
		v.conn.Close()
	}
	h.keepsNoMoreThan(before)
	h.stop()
}

// What is at the path of the socket is replaced only if it is a dead socket.
func TestSocketFile(t *testing.T) {
	needHost(t)
	sock, mem := socketIn(t), newImage(t, 16, 1)
	refused := func(what string) {
		t.Helper()
		out, err := self(t, beHandler+"=1", "-listen", sock, "-mem", mem).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != statusFailed || !strings.Contains(string(out), what) {
			t.Errorf("got %v, %q; want status %d and %q", err, out, statusFailed, what)
		}
	}
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem)
	if info, err := os.Stat(sock); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket's file is %v, %v; want mode 0600", info.Mode(), err)
	}
	refused("another process listens there")
	h.signal(unix.SIGKILL)
	<-h.done
	if _, err := os.Stat(sock); err != nil {
		t.Fatalf("nothing is left of a server that was killed: %v", err)
	}
	h = startHandler(t, "listening", "-listen", sock, "-mem", mem)
	h.stop()
	if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a server that has stopped leaves its socket: %v", err)
	}
	if err := os.WriteFile(sock, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("something else than a socket")
	if b, err := os.ReadFile(sock); err != nil || string(b) != "precious" {
		t.Errorf("the file at the path holds %q, %v", b, err)
	}
}
