//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// tmpBytes bounds what a guest may keep in /tmp, which is memory of the host's.
const tmpBytes = 64 << 20

// growBytes is how much memory the host is asked for at a time. Most programs
// that run here are small and short, and a page costs 4 µs on a nested host.
const growBytes = 256 << 10

// Tests lower the one and look around by the other.
var (
	maxProcesses = kernel.DefaultMaxProcesses
	afterRun     = func(*machine) error { return nil }
)

// machine is everything that a program needs to run, closed in reverse order.
type machine struct {
	tree     *vfs.Tree
	system   *kvm.System
	memory   *guestmem.Memory
	platform *kvm.Platform
}

// runProgram runs what the options say and returns its exit status.
func runProgram(o *options, stdout, stderr io.Writer) (status int, err error) {
	began := time.Now()
	m := &machine{}
	defer func() { err = errors.Join(err, m.close()) }()
	if m.tree, err = vfs.OpenTree(o.root); err != nil {
		return 0, failed(err)
	}
	program, argv, err := m.openProgram(o)
	if err != nil {
		return 0, err
	}
	if err := m.start(o); err != nil {
		program.Unref()
		return 0, err
	}
	if o.fuzzLoop > 0 {
		status, err := m.fuzzLoop(o, program, argv, stdout, stderr)
		if err == nil {
			err = afterRun(m)
		}
		return status, err
	}
	recorder := newRecorder(o)
	options := m.kernelOptions(o, stderr)
	options.Profile = recorder
	var drawn error
	if o.picture != "" {
		options.AtEnd = func() { drawn = drawMap(o.picture, m.memory, argv) }
	}
	k := kernel.New(options)
	defer kernel.RestoreTerminals()
	if err := k.Start(program, m.workingDirectory(), argv, os.Environ()); err != nil {
		k.Close()
		return 0, notRunnable(whyNotRunnable(argv[0], err, o))
	}
	stop := forwardSignals(k)
	status, err = k.Wait()
	stop()
	k.Close()
	if err := errors.Join(err, drawn); err != nil {
		return 0, failed(err)
	}
	if err := afterRun(m); err != nil {
		return 0, failed(err)
	}
	if err := writeProfile(o, recorder, stderr); err != nil {
		return 0, failed(err)
	}
	r := newReport(status, time.Since(began), k.Report(), m.memory.Stats())
	return status, r.write(o, stdout, stderr)
}

func (m *machine) kernelOptions(o *options, stderr io.Writer) kernel.Options {
	return kernel.Options{
		Memory: m.memory, Platform: m.platform, MemorySize: o.mem, VCPUs: o.vcpus, Messages: stderr,
		Namespace: &vfs.Namespace{Tree: m.tree, Tmp: vfs.NewTmpfs(tmpBytes), Devices: vfs.Devices()},
		Trace:     tracer(o, stderr), MaxProcesses: maxProcesses,
	}
}

func (m *machine) openProgram(o *options) (*vfs.Open, []string, error) {
	if len(o.program) == 0 {
		f, err := openDemo()
		return f, []string{"demo"}, err
	}
	f, err := openProgram(o.program[0], m.tree)
	return f, o.program, err
}

// start makes memory and vCPUs.
func (m *machine) start(o *options) (err error) {
	if m.system, err = kvm.Open(); err != nil {
		return failed(err) // it names the cure
	}
	if m.memory, err = guestmem.NewMemory(guestmem.MemoryOptions{Size: o.mem, Grow: growBytes, GrowAhead: true, Name: "sandbox"}); err != nil {
		return memoryFailure(o, err)
	}
	if m.platform, err = kvm.NewPlatform(m.system, m.memory, kvm.PlatformOptions{MaxVCPUs: o.vcpus, SyscallEntry: kernel.SyscallEntry}); err != nil {
		return memoryFailure(o, err)
	}
	return nil
}

// memoryFailure tells too little -mem from everything else.
func memoryFailure(o *options, err error) error {
	if errors.Is(err, guestmem.ErrNoMemory) || errors.Is(err, guestmem.ErrInvalid) {
		return notRunnable(fmt.Errorf("-mem %d bytes is too little: %w", o.mem, err))
	}
	return failed(err)
}

func whyNotRunnable(name string, err error, o *options) error {
	if errors.Is(err, guestmem.ErrNoMemory) {
		return fmt.Errorf("%s: -mem %d bytes is too little to load it", name, o.mem)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// workingDirectory is the host's, if the guest can see it.
func (m *machine) workingDirectory() string {
	if dir, err := os.Getwd(); err == nil {
		if guest, ok := m.tree.GuestPath(dir); ok {
			return guest
		}
	}
	return "/"
}

func tracer(o *options, stderr io.Writer) *slog.Logger {
	if !o.trace {
		return nil
	}
	return slog.New(slog.NewTextHandler(stderr, nil))
}

// close undoes start. What went wrong first is what is reported.
func (m *machine) close() error {
	var errs []error
	if m.platform != nil {
		errs = append(errs, m.platform.Close())
	}
	if m.memory != nil {
		errs = append(errs, m.memory.Close())
	}
	if m.system != nil {
		errs = append(errs, m.system.Close())
	}
	if m.tree != nil {
		errs = append(errs, m.tree.Close())
	}
	return errors.Join(errs...)
}
