//go:build !(linux && amd64)

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "vmm: this needs Linux on x86-64 with KVM")
	os.Exit(1)
}
