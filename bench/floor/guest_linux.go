//go:build amd64 || arm64

package floor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// A guest is the program's guest: it has sent its userfaultfd, and waits to be
// started.
type guest struct {
	mode      string
	cmd       *exec.Cmd
	conn      net.Conn
	fd        *uffd.FD
	base      addr.HVA
	size      uint64
	out, said output
}

func (p *Program) startGuest(mode string, pages int) (_ *guest, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "guest")
	defer ours.Close()
	g := &guest{mode: mode, size: uint64(pages) * pageSize}
	g.cmd = exec.CommandContext(p.ctx, p.path, "guest", mode, fmt.Sprint(pages), "3")
	g.cmd.ExtraFiles = []*os.File{theirs}
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.said
	err = g.cmd.Start()
	theirs.Close()
	if err != nil {
		return nil, err
	}
	if g.conn, g.fd, g.base, err = receive(ours); err != nil {
		g.cmd.Process.Kill()
		return nil, fmt.Errorf("floor guest %s: %w: %s", mode, errors.Join(err, g.cmd.Wait()), firstLine(g.said))
	}
	return g, nil
}

// start lets it touch its memory.
func (g *guest) start() error {
	_, err := g.conn.Write([]byte{1})
	return err
}

// finish waits for its end and returns what it measured. With an error it is
// killed, and the error returned.
func (g *guest) finish(err error) (workload.Figure, error) {
	defer g.conn.Close()
	defer g.fd.Close()
	if err != nil {
		g.cmd.Process.Kill()
	}
	if err := errors.Join(err, g.cmd.Wait()); err != nil {
		return workload.Figure{}, fmt.Errorf("floor guest %s: %w: %s", g.mode, err, firstLine(g.said))
	}
	return parse(string(g.out))
}
