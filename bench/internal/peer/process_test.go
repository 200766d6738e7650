package peer

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

// start runs serve in place of a process.
func start(serve func(in io.Reader, out io.Writer) error) *Process {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := serve(inR, outW)
		inR.Close()
		outW.Close()
		done <- err
	}()
	kill := func() {
		inR.Close()
		outW.Close()
	}
	return newProcess("peer", inW, outR, kill, func() error { return <-done })
}

func TestProcess(t *testing.T) {
	p := start(func(in io.Reader, out io.Writer) error { return workload.Serve(in, out, subject{}) })
	row := workload.Row{Name: "copy/size=8/handle"}
	if _, err := p.Measure(row, time.Millisecond); err == nil || !strings.Contains(err.Error(), "no spaces here") {
		t.Errorf("got %v, want the subject's error", err)
	}
	if err := p.Finish(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Measure(row, time.Millisecond); err == nil {
		t.Error("a closed process answered")
	}
}

// subject refuses everything.
type subject struct{}

func (subject) NewSpace() (workload.Space, error) { return nil, errors.New("no spaces here") }
func (subject) Settle()                           {}
func (subject) Close() error                      { return nil }

func TestProcessThatDies(t *testing.T) {
	p := start(func(in io.Reader, out io.Writer) error { return errors.New("exit status 2: out of luck") })
	row := workload.Row{Name: "copy/size=8/handle"}
	for range 2 { // the reason stays
		if _, err := p.Measure(row, time.Millisecond); err == nil || !strings.Contains(err.Error(), "out of luck") {
			t.Errorf("got %v, want the reason of its death", err)
		}
	}
	if err := p.Close(); err != nil {
		t.Errorf("closing what is dead: %v", err)
	}
}

func TestProcessThatAnswersAnotherRow(t *testing.T) {
	p := start(func(in io.Reader, out io.Writer) error {
		go io.Copy(io.Discard, in) // a pipe without a buffer waits to be read
		_, err := io.WriteString(out, `{"row":"other","figure":{"per_op":1,"ops":1}}`+"\n")
		return err
	})
	if fig, err := p.Measure(workload.Row{Name: "row"}, time.Millisecond); err == nil {
		t.Errorf("took %+v for another row's", fig)
	}
}

func TestStartWithoutBinary(t *testing.T) {
	if _, err := Start(t.Context(), "peer", t.TempDir()+"/absent"); err == nil {
		t.Error("a binary that is not there was started")
	}
}

func TestTail(t *testing.T) {
	var said tail
	io.WriteString(&said, strings.Repeat("noise\n", 1000)+"what counts\n")
	if len(said.data) > tailSize || said.text() != "what counts" {
		t.Errorf("kept %d bytes, says %q", len(said.data), said.text())
	}
}
