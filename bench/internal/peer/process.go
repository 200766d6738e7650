package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// replyIn bounds the wait for one answer: making a row ready can take
// seconds, a round takes its budget.
const replyIn = 2 * time.Minute

// A Process is a contender that answers requests. It is used by one goroutine
// at a time.
type Process struct {
	name  string
	in    io.WriteCloser
	enc   *json.Encoder
	dec   *json.Decoder
	kill  func()
	wait  func() error
	stuck atomic.Bool
	dead  error // set once the process cannot be asked any more
}

// Start runs the binary as a contender of that name. It is killed when ctx
// ends.
func Start(ctx context.Context, name, binary string) (*Process, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, binary)
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	var said tail
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	wait := func() error {
		defer cancel()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, said.text())
		}
		return nil
	}
	return newProcess(name, in, out, cancel, wait), nil
}

func newProcess(name string, in io.WriteCloser, out io.Reader, kill func(), wait func() error) *Process {
	return &Process{name: name, in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(out), kill: kill, wait: wait}
}

// Measure asks for one round of a row.
func (p *Process) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	return p.ask(workload.Request{Row: row.Name, Budget: budget})
}

// Finish lets go of the row last asked for.
func (p *Process) Finish() error {
	_, err := p.ask(workload.Request{})
	return err
}

func (p *Process) ask(req workload.Request) (workload.Figure, error) {
	if p.dead != nil {
		return workload.Figure{}, p.dead
	}
	timer := time.AfterFunc(replyIn, func() {
		p.stuck.Store(true)
		p.kill()
	})
	defer timer.Stop()
	if err := p.enc.Encode(req); err != nil {
		return workload.Figure{}, p.bury(err)
	}
	var reply workload.Reply
	if err := p.dec.Decode(&reply); err != nil {
		return workload.Figure{}, p.bury(err)
	}
	switch {
	case reply.NoFigure:
		return workload.Figure{}, workload.ErrNoFigure
	case reply.Err != "":
		return workload.Figure{}, fmt.Errorf("%s: %s", p.name, reply.Err)
	case reply.Row != req.Row:
		return workload.Figure{}, p.bury(fmt.Errorf("answered row %q when asked for %q", reply.Row, req.Row))
	}
	return reply.Figure, nil
}

// bury notes that the process is of no use any more, and why.
func (p *Process) bury(err error) error {
	p.kill()
	if waitErr := p.wait(); waitErr != nil && !p.stuck.Load() {
		err = waitErr // says more than a broken pipe
	}
	if p.stuck.Load() {
		err = fmt.Errorf("no answer within %v", replyIn)
	}
	p.dead = fmt.Errorf("%s ended: %w", p.name, err)
	return p.dead
}

// Close lets the process end.
func (p *Process) Close() error {
	if p.dead != nil {
		return nil // reported when it died
	}
	p.dead = errors.New("closed")
	if err := p.in.Close(); err != nil {
		p.kill()
	}
	return p.wait()
}

// tail keeps the last of what a process writes to its standard error.
type tail struct{ data []byte } // written by one goroutine, read after Wait

const tailSize = 1 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - tailSize; over > 0 {
		t.data = t.data[over:]
	}
	return len(p), nil
}

func (t *tail) text() string { return summary(t.data) }
