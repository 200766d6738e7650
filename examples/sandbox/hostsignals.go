//go:build linux && amd64

package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/kernel"
)

// impatience: a second interrupt within it ends the sandbox, whatever the
// program makes of the first. A longer one would end interactive shells, in
// which every Ctrl-C is a first one.
const impatience = 2 * time.Second

// forwardSignals passes the host's signals to the guest's foreground group
// until stop is called.
func forwardSignals(k *kernel.Kernel) (stop func()) {
	incoming := make(chan os.Signal, 8)
	done := make(chan struct{})
	signal.Notify(incoming, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGWINCH, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		var last time.Time
		for {
			select {
			case <-done:
				return
			case s := <-incoming:
				sig := s.(syscall.Signal)
				if sig == unix.SIGINT || sig == unix.SIGTERM {
					if time.Since(last) < impatience {
						kernel.RestoreTerminals()
						os.Exit(128 + int(sig))
					}
					last = time.Now()
				}
				k.Signal(sig)
			}
		}
	}()
	return func() {
		signal.Stop(incoming)
		close(done)
	}
}
