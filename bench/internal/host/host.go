package host

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Describe returns the header of a report: what the figures depend on.
func Describe() string {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%-8s%s\n", name, value) }
	line("cpu", fmt.Sprintf("%s, %d usable", or(CPU(), "unknown"), runtime.NumCPU()))
	line("kernel", or(readLine("/proc/sys/kernel/osrelease"), runtime.GOOS))
	line("thp", fmt.Sprintf("%s, shmem %s",
		or(chosen(readLine("/sys/kernel/mm/transparent_hugepage/enabled")), "unknown"),
		or(chosen(readLine("/sys/kernel/mm/transparent_hugepage/shmem_enabled")), "unknown")))
	line("go", fmt.Sprintf("%s %s/%s, GOMAXPROCS %d", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0)))
	line("date", time.Now().UTC().Format(time.DateTime)+" UTC")
	return b.String()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// readLine returns the first line of a file, or "" if it cannot be read.
func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return first
}

// chosen returns the word in brackets of "always [madvise] never".
func chosen(line string) string {
	_, rest, _ := strings.Cut(line, "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}

// CPU returns the processor's name, or "" if it is not known.
func CPU() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
