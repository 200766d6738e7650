//go:build linux && (amd64 || arm64)

package uffd

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A peer is another process, of this test's binary, whose memory a test serves:
// what a fork or the end of a process does can only be seen from outside.

const (
	peerEnv      = "GUESTMM_UFFD_PEER" // "serve": as below
	peerFeatures = "GUESTMM_UFFD_PEER_FEATURES"
	peerPages    = 16
)

// Commands of a peer: one byte and a page number.
const (
	peerTouch = 't' // reads the page's first byte, and sends it
	peerFork  = 'f' // forks a process that sends it
	peerExit  = 'x'
)

type peer struct {
	*FD
	t    testing.TB
	base addr.HVA
	conn *net.UnixConn
	cmd  *exec.Cmd
}

func startPeer(t testing.TB, features Features) *peer {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "peer"), os.NewFile(uintptr(fds[1]), "peer")
	defer ours.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerEnv+"=serve", peerFeatures+"="+strconv.FormatUint(uint64(features), 10))
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, conn: c.(*net.UnixConn), cmd: cmd}
	t.Cleanup(p.stop)
	head, oob := make([]byte, 8), make([]byte, 64)
	_, n, _, _, err := p.conn.ReadMsgUnix(head, oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatal(len(msgs), err)
	}
	rights, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	if p.FD, err = FromFD(rights[0]); err != nil {
		t.Fatal(err)
	}
	p.base = addr.HVA(binary.NativeEndian.Uint64(head))
	return p
}

func (p *peer) stop() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p.conn.Close()
	if p.FD != nil {
		p.Close()
	}
}

func (p *peer) send(command, i byte) {
	p.t.Helper()
	if _, err := p.conn.Write([]byte{command, i}); err != nil {
		p.t.Fatal(err)
	}
}

// receive returns the byte that a touch or a fork has read.
func (p *peer) receive() byte {
	var b [1]byte
	if _, err := p.conn.Read(b[:]); err != nil {
		p.t.Error(err)
	}
	return b[0]
}

func (p *peer) at(i uint64) addr.HVA { return p.base + addr.HVA(i*page) }

// peerMain is the process of a peer.
func peerMain(mode string) {
	var err error
	switch mode {
	case "serve":
		err = peerServe(3)
	case "open":
		err = peerOpen()
	default:
		err = fmt.Errorf("no mode %q", mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func peerServe(sock int) error {
	features, err := strconv.ParseUint(os.Getenv(peerFeatures), 10, 64)
	if err != nil {
		return err
	}
	f, err := Open(Options{Required: Features(features)})
	if err != nil {
		return err
	}
	base, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(peerPages*page),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		return errno
	}
	if _, err := f.Register(addr.HVA(base), peerPages*page, Missing); err != nil {
		return err
	}
	head := binary.NativeEndian.AppendUint64(nil, uint64(base))
	if err := unix.Sendmsg(sock, head, unix.UnixRights(f.Fd()), nil, 0); err != nil {
		return err
	}
	for {
		var c [2]byte
		if n, err := unix.Read(sock, c[:]); n != 2 || err != nil {
			return err
		}
		at := base + uintptr(c[1])*uintptr(page)
		switch c[0] {
		case peerTouch:
			go unix.Syscall(unix.SYS_WRITE, uintptr(sock), at, 1) // faults in the system call
		case peerFork:
			if _, errno := forkAndSend(uintptr(sock), at, 1); errno != 0 {
				return errno
			}
		case peerExit:
			return nil
		}
	}
}
