//go:build linux && amd64

package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

var lastLine = regexp.MustCompile(`^fuzzloop: (\d+) runs: ([0-9.]+) executions/s by rollback, ([0-9.]+) executions/s by re-execution, ratio ([0-9.]+)$`)

// fuzzloop runs a script n times and returns what all runs printed.
func fuzzloop(t *testing.T, n int, at, stdin string, status int, program ...string) string {
	t.Helper()
	testutil.RequireKVM(t)
	args := append([]string{"-fuzzloop", strconv.Itoa(n), "-fuzzloop-at", at, "--"}, program...)
	r := sandbox{stdin: strings.NewReader(stdin)}.start(t, args)
	if r.status != status {
		t.Errorf("status %d, want %d; stderr %.400s", r.status, status, r.stderr)
	}
	printed, last := "", strings.TrimSuffix(r.stdout, "\n")
	if i := strings.LastIndexByte(last, '\n'); i >= 0 {
		printed, last = last[:i+1], last[i+1:]
	}
	m := lastLine.FindStringSubmatch(last)
	if m == nil {
		t.Fatalf("the last line is %q; stderr %.400s", last, r.stderr)
	}
	rollback, _ := strconv.ParseFloat(m[2], 64)
	plain, _ := strconv.ParseFloat(m[3], 64)
	ratio, _ := strconv.ParseFloat(m[4], 64)
	const rounded = 0.051
	if m[1] != strconv.Itoa(n) || plain <= 0 || ratio < (rollback-rounded)/(plain+rounded)-0.01 ||
		plain > rounded && ratio > (rollback+rounded)/(plain-rounded)+0.01 {
		t.Errorf("the figures do not agree: %q", last)
	}
	return printed
}

// Whatever a run has changed is as it was for the next: each prints the same.
func TestFuzzLoopRunsAreAlike(t *testing.T) {
	busybox := testutil.Busybox(t)
	for _, tt := range []struct {
		name, at, script, stdin string
		status                  int
		want                    string // of each run
	}{
		{"memory", "entry", `x=${x}a; echo $x`, "", 0, "a\n"},
		{"memory at stdin", "stdin", `x=1; read y; x=$x$y; echo $x; x=2; read z; echo $x$z`, "a\nb\n", 0, "1a\n2b\n"},
		{"status", "entry", `exit 3`, "", 3, ""},
		{"input at entry", "entry", `cat; cat`, "line\n", 0, "line\n"},
		{"pids", "entry", `(exit 0); sh -c 'echo $$'; echo $$`, "", 0, ""},
		{"files of /tmp", "entry", `cat /tmp/f 2>/dev/null; echo a >>/tmp/f; cat /tmp/f`, "", 0, "a\n"},
		{"directory", "stdin", `cd /; read x; pwd; cd /etc; umask 077; cd`, "x\n", 0, "/\n"},
		{"descriptors", "stdin", `exec 5</etc/passwd; read x; ls /proc/self/fd | wc -l; exec 5<&- 1>&1; exec 1>&-`, "x\n", 0, ""},
		{"offsets", "stdin", `exec 5</proc/filesystems; read a <&5; read x; read b <&5; test "$a" != "$b" && echo differ; read c <&5`, "x\n", 0, "differ\n"},
		{"signals", "stdin", `trap 'echo caught' USR1; read x; kill -USR1 $$; trap '' USR1; kill -USR1 $$; echo after`, "x\n", 0, "caught\nafter\n"},
		{"death", "stdin", `read x; kill -SEGV $$`, "x\n", 139, ""},
		{"children left behind", "entry", `set -- /proc/[0-9]*; echo $#; sleep 1000 & sleep 1000 &`, "", 0, "1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const n = 4
			got := fuzzloop(t, n, tt.at, tt.stdin, tt.status, busybox, "sh", "-c", tt.script)
			if tt.want != "" && got != strings.Repeat(tt.want, n) {
				t.Errorf("%d runs printed %q, want each to print %q", n, got, tt.want)
			}
			if tt.want == "" && len(got)%n == 0 && got != strings.Repeat(got[:len(got)/n], n) {
				t.Errorf("the runs differ: %q", got)
			}
		})
	}
}

// Threads that a run has left are gone, and what it started with comes back.
func TestFuzzLoopOfThreads(t *testing.T) {
	program := guest(t, "threads")
	for _, mode := range []string{"clone", "futex", "ends", "vfork", "forkexec"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			if got := fuzzloop(t, 3, "entry", "", 0, program, mode); got != strings.Repeat("right\n", 3) {
				t.Errorf("the runs print %q", got)
			}
		})
	}
}

func TestFuzzLoopRefusals(t *testing.T) {
	testutil.RequireKVM(t)
	for _, tt := range []struct {
		name, part string
		args       []string
	}{
		{"no number", "number", []string{"-fuzzloop", "many", "true"}},
		{"no run", "number", []string{"-fuzzloop", "0", "true"}},
		{"no place", "entry or stdin", []string{"-fuzzloop", "2", "-fuzzloop-at", "exit", "true"}},
		{"other figures", "no -map", []string{"-fuzzloop", "2", "-stats", "true"}},
		{"place alone", "needs -fuzzloop", []string{"-fuzzloop-at", "stdin", "true"}},
		{"never reads", "before it read its stdin", []string{"-fuzzloop", "2", "-fuzzloop-at", "stdin", testutil.Busybox(t), "true"}},
		{"two processes", "one thread", []string{"-fuzzloop", "2", "-fuzzloop-at", "stdin", testutil.Busybox(t), "sh", "-c", "sleep 100 & read x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := sandbox{stdin: strings.NewReader("x\n")}.start(t, tt.args)
			if r.status != statusFailed {
				t.Errorf("status %d", r.status)
			}
			r.oneLine(t, tt.part)
		})
	}
}
