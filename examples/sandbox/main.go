//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Exit statuses of the sandbox's own, as env(1) and chroot(1) have them.
const (
	statusFailed      = 125 // the sandbox itself
	statusNotRunnable = 126
	statusNotFound    = 127
)

// exitError is why there is no program's exit status to return.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func failed(err error) error      { return &exitError{statusFailed, err} }
func notRunnable(err error) error { return &exitError{statusNotRunnable, err} }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the exit.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args)
	if err == nil && o.help {
		fmt.Fprint(stdout, usage)
		return 0
	}
	status := 0
	if err == nil {
		status, err = runProgram(o, stdout, stderr)
	}
	if err == nil {
		return status
	}
	// One line, whatever the error's parts say.
	fmt.Fprintf(stderr, "sandbox: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	var e *exitError
	if errors.As(err, &e) {
		return e.status
	}
	return statusFailed
}
