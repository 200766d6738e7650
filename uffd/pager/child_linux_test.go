package pager

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// childEnv makes a test binary the process of a guest.
const childEnv = "GUESTMM_PAGER_CHILD"

// A childPlan is what a guest's process does: it makes its memory and its
// userfaultfd, sends that over descriptor 3, and then checks every byte that it
// reads against what it must be.
type childPlan struct {
	Pages, Threads, Ops int
	Seed                uint64
	Fork                bool // only fork, and have the child check its memory
	Idle                bool // touch nothing, wait to be told to end
	Touch               touchWay
	Serve               *serverPlan
	Restore             string // restore this file again and again
}

// childMain is the guest's process, and returns in every other.
func childMain() {
	plan := os.Getenv(childEnv)
	if plan == "" {
		return
	}
	var p childPlan
	if err := json.Unmarshal([]byte(plan), &p); err != nil {
		panic(err)
	}
	if p.Serve != nil {
		p.Serve.serve()
	}
	if p.Touch != 0 {
		p.touch()
	}
	if p.Restore != "" {
		restoreForever(p.Restore)
	}
	if err := p.run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (p childPlan) run() error {
	file := os.NewFile(3, "socket")
	c, err := net.FileConn(file)
	if err != nil {
		return err
	}
	conn := c.(*net.UnixConn)
	g, err := mapReal(uint64(p.Pages)*smallPage, realOptions{features: events})
	if err != nil {
		return err
	}
	hello := binary.LittleEndian.AppendUint64(nil, uint64(g.start))
	if _, _, err := conn.WriteMsgUnix(hello, unix.UnixRights(g.fd.Fd()), nil); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, hello[:1]); err != nil {
		return err
	}
	if p.Idle {
		var buf [smallPage]byte
		err := load(g.start, buf[:])
		_, _ = io.ReadFull(conn, hello[:1])
		return err
	}
	if p.Fork {
		return p.fork(g)
	}
	errs := make(chan error, p.Threads)
	var wg sync.WaitGroup
	per := p.Pages / p.Threads
	for th := range p.Threads {
		wg.Go(func() {
			if err := p.thread(g, th*per, per, p.Seed+uint64(th)); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// thread is a guest's thread with n pages of its own: it loads, stores and
// gives back at random, and knows what each page holds.
func (p childPlan) thread(g *realGuest, first, n int, seed uint64) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	const fromImage, fromZero = 0, 1 // else: the number of the store
	model := make([]uint64, n)
	buf := make([]byte, smallPage)
	want := make([]byte, smallPage)
	content := func(i int) []byte {
		switch model[i] {
		case fromImage:
			fillPage(want, uint64(first+i)*smallPage)
		case fromZero:
			clear(want)
		default:
			for k := 0; k < smallPage; k += 8 {
				binary.LittleEndian.PutUint64(want[k:], model[i]*0x100000001b3+uint64(k))
			}
		}
		return want
	}
	check := func(i int) error {
		if err := load(g.page(first+i), buf); err != nil {
			return fmt.Errorf("load of page %d: %w", first+i, err)
		}
		if !bytes.Equal(buf, content(i)) {
			return fmt.Errorf("page %d (%d) holds %x..., want %x...", first+i, model[i], head(buf), head(want))
		}
		return nil
	}
	for op := range p.Ops {
		i := rnd.IntN(n)
		switch k := rnd.IntN(100); {
		case k < 8:
			count := min(1+rnd.IntN(16), n-i)
			if err := adviseRaw(g.page(first+i), uint64(count)*smallPage, unix.MADV_DONTNEED); err != nil {
				return err
			}
			for j := range count {
				model[i+j] = fromZero
			}
		case k < 25:
			model[i] = uint64(op) + 2
			if err := store(g.page(first+i), content(i)); err != nil {
				return fmt.Errorf("store to page %d: %w", first+i, err)
			}
		default:
			if err := check(i); err != nil {
				return err
			}
		}
	}
	for i := range n {
		if err := check(i); err != nil {
			return err
		}
	}
	return nil
}

// How a forked child ends that has not found what it should.
const (
	exitUnreadable = 40
	exitWrongBytes = 41
)

// fork makes a child that checks all of its memory and ends. It makes system
// calls only: it is a copy of one thread of a Go program.
func (p childPlan) fork(g *realGuest) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf := make([]byte, smallPage)
	local := iovec(buf)
	want := make([]byte, p.Pages*smallPage)
	for i := range p.Pages {
		fillPage(want[i*smallPage:(i+1)*smallPage], uint64(i)*smallPage)
	}
	// Page 1 is there before the fork, page 2 was given back.
	if err := load(g.page(1), buf); err != nil {
		return err
	}
	if err := adviseRaw(g.page(2), smallPage, unix.MADV_DONTNEED); err != nil {
		return err
	}
	clear(want[2*smallPage : 3*smallPage])
	pid, errno := rawFork()
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		rawCheck(g.start, local, buf, want)
	}
	var st syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &st, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if st.ExitStatus() != 0 {
		return fmt.Errorf("the forked child ended with exit status %d (%#x)", st.ExitStatus(), uint32(st))
	}
	return nil
}

// A child is a guest's process as the server sees it.
type child struct {
	cmd    *exec.Cmd
	conn   *net.UnixConn
	fd     *uffd.FD
	start  addr.HVA
	peer   *Peer
	stderr bytes.Buffer
	ended  chan error
}

func startChild(t testing.TB, p childPlan) *child {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	plan, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
	c := &child{cmd: exec.Command("/proc/self/exe"), ended: make(chan error, 1)}
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(plan))
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stderr = &c.stderr
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.conn = conn.(*net.UnixConn)
	err = c.cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if c.peer, err = OpenPeer(c.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	go func() { c.ended <- c.cmd.Wait() }()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		c.conn.Close()
		if c.fd != nil {
			c.fd.Close()
		}
		c.peer.Close()
	})
	var hello [8]byte
	got, err := readWithFDs(c.conn, hello[:])
	if err != nil || len(got) != 1 {
		t.Fatalf("guest's first message: %v, %d descriptors; %s", err, len(got), c.stderr.String())
	}
	if c.fd, err = uffd.FromFD(got[0]); err != nil {
		t.Fatal(err)
	}
	c.start = addr.HVA(binary.LittleEndian.Uint64(hello[:]))
	return c
}

// goOn lets the guest run.
func (c *child) goOn(t testing.TB) {
	t.Helper()
	if _, err := c.conn.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
}

// mustSucceed waits for the guest to have found every byte right.
func (c *child) mustSucceed(t testing.TB) {
	t.Helper()
	if err := <-c.ended; err != nil {
		t.Fatalf("guest: %v: %s", err, c.stderr.String())
	}
}
