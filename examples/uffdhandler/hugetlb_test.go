//go:build linux && amd64

package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// needHugePages sees to n free pages of 2 MiB, and gives back what it took.
func needHugePages(t *testing.T, n int) {
	t.Helper()
	const dir = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	number := func(name string) int {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			t.Skipf("%v; use a kernel with CONFIG_HUGETLBFS", err)
		}
		v, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	total := number("nr_hugepages")
	if number("free_hugepages") >= n {
		return
	}
	set := func(v int) error { return os.WriteFile(dir+"nr_hugepages", []byte(strconv.Itoa(v)), 0) }
	if err := set(total + n); err != nil {
		t.Skipf("%v; sysctl vm.nr_hugepages=%d", err, total+n)
	}
	t.Cleanup(func() {
		if err := set(total); err != nil {
			t.Error(err)
		}
	})
	if free := number("free_hugepages"); free < n {
		t.Skipf("%d huge pages of 2 MiB are free, want %d; sysctl vm.nr_hugepages=%d", free, n, total+n)
	}
}
