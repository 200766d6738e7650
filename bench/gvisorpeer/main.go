package main

import (
	"fmt"
	"os"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "gvisorpeer:", err)
		os.Exit(1)
	}
}

func serve() error {
	sub, err := newSubject()
	if err != nil {
		return err
	}
	defer sub.Close()
	return workload.Serve(os.Stdin, os.Stdout, sub)
}
