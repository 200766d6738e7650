//go:build linux && amd64

package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// held is what the process holds of the host: descriptors, and mappings of
// memfds and of vCPUs. The Go runtime's own are not counted.
type held struct{ fds, mappings int }

func holdings() held {
	var h held
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, n := range names {
		to, err := os.Readlink(n)
		if err == nil && isOurs(to) {
			h.fds++
		}
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return h
	}
	defer maps.Close()
	for s := bufio.NewScanner(maps); s.Scan(); {
		if isOurs(s.Text()) {
			h.mappings++
		}
	}
	return h
}

func isOurs(name string) bool {
	return slices.ContainsFunc([]string{"memfd:", "kvm", "userfaultfd"}, func(s string) bool { return strings.Contains(name, s) })
}

// since says what is held more than before.
func (h held) since(before held) string {
	if h.fds <= before.fds && h.mappings <= before.mappings {
		return ""
	}
	return fmt.Sprintf("%d descriptors and %d mappings, before: %d and %d", h.fds, h.mappings, before.fds, before.mappings)
}
