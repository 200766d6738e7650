//go:build linux && amd64

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

func TestBusyboxShell(t *testing.T) {
	busybox, err := filepath.EvalSymlinks(testutil.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, script string
		status       int
		stdout       string
	}{
		{"pipe", `echo hello | wc -c`, 0, "6\n"},
		{"exit code", `exit 42`, 42, ""},
		{"false", `false`, 1, ""},
		{"not found", `nosuchcommand 2>/dev/null`, 127, ""},
		{"pipeline", `seq 1 10000 | sort -rn | head -3 | tail -1`, 0, "9998\n"},
		{"here document", "cat <<E\na $((6*7))\nE", 0, "a 42\n"},
		{"substitution", `x=$(echo in $(echo ner)); echo "$x"`, 0, "in ner\n"},
		{"exec", `exec echo replaced; echo not reached`, 0, "replaced\n"},
		{"subshell", `(exit 3); echo $?`, 0, "3\n"},
		{"background", `sleep 0.1 & wait $!; echo $?`, 0, "0\n"},
		{"kill", `sleep 20 & kill $!; wait $!; echo $?`, 0, "143\n"},
		{"kill -9", `kill -9 $$`, 137, ""},
		{"segv", `kill -SEGV $$`, 139, ""},
		{"trap", `trap 'echo got it' USR1; kill -USR1 $$; echo after`, 0, "got it\nafter\n"},
		{"trap exit", `trap 'echo bye' EXIT; exit 7`, 7, "bye\n"},
		{"ignored", `trap '' TERM; kill $$; echo here`, 0, "here\n"},
		{"broken pipe", `yes | head -1`, 0, "y\n"},
		{"timeout", `timeout 0.3 sleep 20; echo $?`, 0, "143\n"},
		{"job of its own", `(kill -STOP $(exec sh -c 'echo $PPID') && : >/tmp/goes-on) & until [ -e /tmp/goes-on ]; do sleep 0.1; kill -CONT $!; done 2>/dev/null; wait $!; echo $?`, 0, "0\n"},
		{"read-only", `echo x 2>/dev/null >/etc/nosuch || echo refused`, 0, "refused\n"},
		{"tmp", `cd /tmp && mkdir -p d/e && echo a >d/e/f && echo b >>d/e/f && mv d/e/f d/g && cat d/g && rm -r d && ls d 2>/dev/null`, 1, "a\nb\n"},
		{"null", `echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 9 /dev/urandom | wc -c`, 0, "3\n9\n"},
		{"dev fd", `echo through | cat /dev/stdin; cat /proc/self/fd/0 </dev/null`, 0, "through\n"},
		{"self", `cat /proc/self/comm; test -r /proc/self/maps && grep -c stack /proc/self/maps`, 0, "cat\n1\n"},
		{"own exe", `readlink /proc/self/exe`, 0, busybox + "\n"},
		{"parent", `sh -c 'test $PPID -gt 1 && echo yes'; :`, 0, "yes\n"},
		{"orphan", `sh -c 'sleep 0.3 & exit 5'; echo $?`, 0, "5\n"},
		{"sort numbers", `printf '3\n1\n2\n' | sort`, 0, "1\n2\n3\n"},
		{"here in loop", `for i in 1 2 3; do cat <<E; done | tr '\n' ' '` + "\n$i\nE\n", 0, "1 2 3 "},
		{"wide pipeline", `echo x` + strings.Repeat(` | cat`, 30), 0, "x\n"},
		{"large pipe", `head -c 3000000 /dev/zero | cat | tr '\0' a | wc -c`, 0, "3000000\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sandbox{}.run(t, busybox, "sh", "-c", tt.script).want(t, tt.status, tt.stdout)
		})
	}
}

func TestBusyboxForks(t *testing.T) {
	r := sandbox{}.run(t, testutil.Busybox(t), "sh", "-c",
		`i=0; while [ $i -lt 100 ]; do i=$((i+1)); x=$(echo $i); done; echo $x`)
	r.want(t, 0, "100\n")
	if r.report == nil || r.report.Forks < 100 || r.report.ForkMedian == nil {
		t.Errorf("report is %+v, want 100 forks and their median", r.report)
	}
}

// sizeOfLargeInput is what sort and sha256sum get on stdin.
const sizeOfLargeInput = 10 << 20

func TestBusyboxSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var in bytes.Buffer
	var lines []string
	for in.Len() < sizeOfLargeInput {
		line := fmt.Sprintf("%016x %d\n", rng.Uint64(), rng.IntN(1000))
		in.WriteString(line)
		lines = append(lines, line)
	}
	slices.Sort(lines)
	r := sandbox{stdin: &in}.run(t, testutil.Busybox(t), "sort")
	if r.status != 0 || r.stdout != strings.Join(lines, "") {
		t.Errorf("status %d, %d bytes that differ from the host's order; stderr %s", r.status, len(r.stdout), r.stderr)
	}
}

func TestBusyboxSHA256(t *testing.T) {
	in := make([]byte, sizeOfLargeInput)
	rand.NewChaCha8([32]byte{7}).Read(in)
	sandbox{stdin: bytes.NewReader(in)}.run(t, testutil.Busybox(t), "sha256sum").
		want(t, 0, fmt.Sprintf("%x  -\n", sha256.Sum256(in)))
}

// A read of the sandbox's stdin holds nobody else up, and a signal ends it.
func TestStdinBlocksAlone(t *testing.T) {
	busybox := testutil.Busybox(t)
	sandbox{stdin: silentPipe(t)}.run(t, busybox, "sh", "-c",
		`exec 3<&0; cat <&3 & sleep 0.2; echo alive; kill $!; wait $!; echo $?`).want(t, 0, "alive\n143\n")
}

// silentPipe returns a pipe that stays open, and in which nothing ever comes.
func silentPipe(t *testing.T) io.Reader {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	return in
}

// The end of the first process ends all others, whatever they wait for.
func TestFirstProcessEndsAll(t *testing.T) {
	busybox := testutil.Busybox(t)
	sandbox{stdin: silentPipe(t)}.run(t, busybox, "sh", "-c",
		`exec 3<&0; cat <&3 & sleep 100 & while :; do :; done & (while :; do sh -c :; done) & sleep 0.3; exit 9`).want(t, 9, "")
}

func TestClosedStandardStreams(t *testing.T) {
	busybox := testutil.Busybox(t)
	sandbox{stdin: io.LimitReader(nil, 0)}.run(t, busybox, "cat").want(t, 0, "")
}
