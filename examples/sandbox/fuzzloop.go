//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

const (
	// maxFuzzInput bounds what is kept of stdin for the runs.
	maxFuzzInput = 64 << 20

	// maxReexecutions is how often the program is run in the plain way, to compare;
	// fewer if the loop itself is shorter.
	maxReexecutions = 100
)

// fuzzLoop runs the program N times from one snapshot, with rollback between the
// runs, then some times in the plain way, and prints how fast each was. The plain
// way is what the sandbox does without -fuzzloop: a machine made, the program
// loaded and run, all of it closed. The status is that of the last run from the
// snapshot.
func (m *machine) fuzzLoop(o *options, program *vfs.Open, argv []string, stdout, stderr io.Writer) (status int, err error) {
	input, err := fuzzInput()
	if err != nil {
		program.Unref()
		return 0, failed(err)
	}
	status, rollback, err := m.runFromSnapshot(o, program, argv, input, stderr)
	if err != nil {
		return 0, err
	}
	_, plain, err := timed(min(o.fuzzLoop, maxReexecutions), func() (int, error) { return reexecute(o, input, stderr) })
	if err != nil {
		return 0, failed(fmt.Errorf("plain execution: %w", err))
	}
	_, err = fmt.Fprintf(stdout, "fuzzloop: %d runs: %.1f executions/s by rollback, %.1f executions/s by re-execution, ratio %.2f\n",
		o.fuzzLoop, rollback, plain, rollback/plain)
	if err != nil {
		return 0, failed(err)
	}
	return status, nil
}

// runFromSnapshot has the program come to where it is kept, and runs it from there.
func (m *machine) runFromSnapshot(o *options, program *vfs.Open, argv []string, input []byte, stderr io.Writer) (status int, perSecond float64, err error) {
	stdin := vfs.NewBytes(input)
	defer stdin.Unref()
	options := m.kernelOptions(o, stderr)
	options.Checkpoint, options.Stdin = o.fuzzAt, stdin
	options.NewTmp = func() *vfs.Tmpfs { return vfs.NewTmpfs(tmpBytes) }
	k := kernel.New(options)
	defer kernel.RestoreTerminals()
	defer k.Close()
	if err := k.Start(program, m.workingDirectory(), argv, os.Environ()); err != nil {
		return 0, 0, notRunnable(whyNotRunnable(argv[0], err, o))
	}
	c, err := keep(k, o)
	if err != nil {
		return 0, 0, failed(err)
	}
	status, perSecond, err = timed(o.fuzzLoop, func() (int, error) {
		if err := k.Again(c); err != nil {
			return 0, err
		}
		return k.Wait()
	})
	if err := errors.Join(err, k.Release(c)); err != nil {
		return 0, 0, failed(err)
	}
	return status, perSecond, nil
}

// keep waits until the program has come to where it is kept.
func keep(k *kernel.Kernel, o *options) (*kernel.Checkpoint, error) {
	if o.fuzzAt == kernel.AtStdin {
		status, err := k.Wait()
		if err != nil {
			return nil, err
		}
		if k.Checkpoint() == nil {
			return nil, fmt.Errorf("the program ended, with status %d, before it read its stdin", status)
		}
	}
	return k.Checkpoint(), nil
}

// reexecute runs the program once in a machine of its own, unseen.
func reexecute(o *options, input []byte, stderr io.Writer) (status int, err error) {
	m := &machine{}
	defer func() { err = errors.Join(err, m.close()) }()
	if m.tree, err = vfs.OpenTree(o.root); err != nil {
		return 0, err
	}
	program, argv, err := m.openProgram(o)
	if err != nil {
		return 0, err
	}
	if err := m.start(o); err != nil {
		program.Unref()
		return 0, err
	}
	stdin := vfs.NewBytes(input)
	defer stdin.Unref()
	options := m.kernelOptions(o, stderr)
	options.Stdin, options.Unseen = stdin, true
	k := kernel.New(options)
	defer k.Close()
	if err := k.Start(program, m.workingDirectory(), argv, os.Environ()); err != nil {
		return 0, err
	}
	return k.Wait()
}

// timed runs n times and returns the last status and how many there were in a
// second.
func timed(n int, run func() (int, error)) (status int, perSecond float64, err error) {
	began := time.Now()
	for range n {
		if status, err = run(); err != nil {
			return 0, 0, err
		}
	}
	return status, float64(n) / time.Since(began).Seconds(), nil
}

// fuzzInput is what every run reads from its stdin, from the beginning.
func fuzzInput() ([]byte, error) {
	if _, open := vfs.HostStream(0); !open {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxFuzzInput+1))
	if err != nil {
		return nil, fmt.Errorf("read stdin for the runs: %w", err)
	}
	if len(data) > maxFuzzInput {
		return nil, fmt.Errorf("stdin has more than the %d bytes that are kept for the runs", maxFuzzInput)
	}
	return data, nil
}
