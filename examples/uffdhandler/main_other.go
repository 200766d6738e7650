//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "uffdhandler: this needs Linux with userfaultfd")
	os.Exit(1)
}
