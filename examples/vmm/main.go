//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

// Exit statuses.
const (
	statusOK          = 0
	statusFailed      = 1 // something was not as it should be
	statusUsage       = 2
	statusInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the exit.
func run(args []string, stdin *os.File, stdout, stderr io.Writer) int {
	var o *options
	var err error
	var command fileCommand
	if len(args) > 0 {
		command = fileCommands[args[0]]
	}
	if command == nil {
		o, err = parseOptions(args)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return statusOK
	case err != nil:
		fmt.Fprintf(stderr, "vmm: %v\nvmm -h lists the flags\n", err)
		return statusUsage
	}
	ctx, stop := interruptible()
	defer stop()
	switch {
	case command != nil:
		err = command(ctx, args[1:], stdout, stderr)
	case o.kernel != "":
		err = bootLinux(ctx, o, stdin, stdout, stderr)
	case o.snapshot != "":
		err = perform(o, stdout, stderr, func(d *demo) error { return d.saveRunning(ctx) })
	case o.restore != "":
		err = perform(o, stdout, stderr, func(d *demo) error { return d.restoreFile(ctx) })
	default:
		err = perform(o, stdout, stderr, func(d *demo) error { return d.demonstrate(ctx) })
	}
	if why := context.Cause(ctx); err != nil && why != nil && !errors.Is(err, why) {
		err = errors.Join(why, err) // not everybody says why his context has ended
	}
	if err == nil {
		return statusOK
	}
	fmt.Fprintf(stderr, "vmm: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nvmm: "))
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintln(stderr, "vmm -h lists what there is")
		return statusUsage
	case errors.Is(err, errInterrupted):
		return statusInterrupted
	}
	return statusFailed
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM, so
// that everything is given back; a second one ends the process as ever.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	incoming := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(incoming, unix.SIGINT, unix.SIGTERM)
	go func() {
		select {
		case s := <-incoming:
			signal.Stop(incoming)
			cancel(fmt.Errorf("%w by %v", errInterrupted, s))
		case <-done:
		}
	}()
	return ctx, func() {
		signal.Stop(incoming)
		close(done)
		cancel(nil)
	}
}

// openKVM opens the device, or says what to do about it.
func openKVM() (*kvm.System, error) {
	sys, err := kvm.Open()
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: load the kvm_intel or kvm_amd module, and enable virtualization in the firmware", err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: become a member of the group kvm", err)
	}
	return sys, err
}
