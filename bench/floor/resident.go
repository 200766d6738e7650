package floor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// A resident is the program kept for all rounds of a row: making a gigabyte ready
// takes fifty times what a round does, and would be a fresh process's each time. It
// prints a round's figure, and begins the next when it reads a line; it ends with its
// standard input.
type resident struct {
	args []string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said output
}

func (p *Program) keep(args []string) (*resident, error) {
	r := &resident{args: args, cmd: exec.CommandContext(p.ctx, p.path, args...)}
	r.cmd.Stderr = &r.said
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		r.in.Close()
		return nil, err
	}
	r.out = bufio.NewReader(out)
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("floor %v: %w", args, err)
	}
	return r, nil
}

// first waits for the round that begins by itself.
func (r *resident) first() (workload.Figure, error) {
	line, err := r.out.ReadString('\n')
	if err != nil {
		if err := r.close(); err != nil {
			return workload.Figure{}, err // says why
		}
		return workload.Figure{}, fmt.Errorf("floor %v has ended", r.args)
	}
	fig, err := parse(line)
	if err != nil {
		err = errors.Join(err, r.close())
	}
	return fig, err
}

func (r *resident) next() (workload.Figure, error) {
	// Where it has ended, the answer says so.
	io.WriteString(r.in, "\n")
	return r.first()
}

// close lets it end. It may be called again.
func (r *resident) close() error {
	if r.cmd == nil {
		return nil
	}
	cmd := r.cmd
	r.cmd = nil
	r.in.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("floor %v: %w: %s", r.args, err, firstLine(r.said))
	}
	return nil
}

// output is what a process says.
type output []byte

func (o *output) Write(p []byte) (int, error) {
	*o = append(*o, p...)
	return len(p), nil
}
