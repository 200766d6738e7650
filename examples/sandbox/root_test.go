//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// rootFixture makes a root with a secret beside it and every way out that
// comes to mind.
func rootFixture(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "a/b"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "secret"), []byte("secret\n"), 0o644))
	must(os.WriteFile(filepath.Join(root, "file"), []byte("inside\n"), 0o644))
	must(os.Symlink("/file", filepath.Join(root, "a/b/absolute")))
	must(os.Symlink("../../file", filepath.Join(root, "a/b/relative")))
	must(os.Symlink("../../../../secret", filepath.Join(root, "a/b/out")))
	must(os.Symlink(filepath.Join(dir, "secret"), filepath.Join(root, "out")))
	must(os.Symlink("/proc/self/cwd", filepath.Join(root, "cwd")))
	must(os.Symlink("/proc/self/root", filepath.Join(root, "proot")))
	must(os.Symlink("loop", filepath.Join(root, "loop")))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	return root
}

func TestRootContains(t *testing.T) {
	busybox := testutil.Busybox(t)
	root := rootFixture(t)
	secret := filepath.Join(filepath.Dir(root), "secret")
	tests := []struct {
		path, stdout string
		status       int
	}{
		{"/file", "inside\n", 0},
		{"file", "inside\n", 0},
		{"/a/../file", "inside\n", 0},
		{"/../../../file", "inside\n", 0},
		{"/a/b/absolute", "inside\n", 0},
		{"/a/b/relative", "inside\n", 0},
		{"/cwd/file", "inside\n", 0},
		{"/proot/file", "inside\n", 0},
		{"/a/b/out", "", 1},
		{"/out", "", 1},
		{"/../secret", "", 1},
		{secret, "", 1},
		{"/etc/passwd", "", 1},
		{"/proc/1/root/etc/passwd", "", 1},
		{"/proc/self/root/../secret", "", 1},
		{"/proc/self/fd/../../../secret", "", 1},
		{"/loop", "", 1},
		{"/fifo", "", 1},
		{"/dev/kvm", "", 1},
		{"/sys/kernel", "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			t.Parallel()
			r := sandbox{flags: []string{"-root", root}}.run(t, busybox, "cat", tt.path)
			r.want(t, tt.status, tt.stdout)
			if strings.Contains(r.stdout+r.stderr, "secret\n") && !strings.Contains(r.stderr, "secret:") {
				t.Errorf("the secret is out: %q %q", r.stdout, r.stderr)
			}
		})
	}
}

// A program that is not below the root still runs, and itself again, and its
// scripts' interpreters are looked for below the root alone.
func TestRootPrograms(t *testing.T) {
	busybox := testutil.Busybox(t)
	root := rootFixture(t)
	raw, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"sh": raw, "script": []byte("#!/sh -e\necho script $0 $1\n"), "dynamic": nil, "lost": []byte("#!/nosuch\n"),
	} {
		if content == nil {
			content = withInterpreter(t, "/nosuch\x00")
		}
		if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := sandbox{flags: []string{"-root", root}}
	s.run(t, busybox, "sh", "-c", `echo hello | wc -c`).want(t, 0, "6\n")
	s.run(t, busybox, "sh", "-c", `/script x`).want(t, 0, "script /script x\n")
	s.run(t, busybox, "sh", "-c", `/lost 2>/dev/null; echo $?; /dynamic 2>/dev/null; echo $?; /file 2>/dev/null; echo $?`).
		want(t, 0, "127\n127\n126\n")
	// The interpreter opens the script by the name that it has below the root.
	s.run(t, filepath.Join(root, "script"), "z").want(t, 0, "script /script z\n")
	s.run(t, busybox, "sh", "-c", `cd a/b && pwd && cd .. && pwd && ls`).want(t, 0, "/a/b\n/a\nb\n")
	s.run(t, busybox, "sh", "-c", `for c in 'echo x >/new' 'rm /file' 'mkdir /d' 'mv /file /g' 'ln -s a /l' 'touch /file' 'chmod 0 /file'; do sh -c "$c" 2>/dev/null && echo "did $c"; done; cat file`).
		want(t, 0, "inside\n")
	if _, err := os.Stat(filepath.Join(root, "file")); err != nil {
		t.Error(err)
	}
}

func TestTraceAndStats(t *testing.T) {
	r := sandbox{flags: []string{"-trace", "-stats"}}.run(t, testutil.Busybox(t), "echo", "x")
	r.want(t, 0, "x\n")
	for _, part := range []string{"msg=write", "msg=exit_group", "pid=2", "areas", "pages installed", "frames leaked", "forks"} {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("stderr lacks %q:\n%s", part, r.stderr)
		}
	}
}

func TestJSONOnStdout(t *testing.T) {
	testutil.RequireKVM(t)
	r := sandbox{}.start(t, []string{"-json", "-", testutil.Busybox(t), "false"})
	var got map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%v in %q", err, r.stdout)
	}
	for _, key := range []string{"exit_status", "syscalls", "faults", "pages_installed", "forks", "fork_ns_median", "frames_leaked", "wall_ms"} {
		if _, ok := got[key]; !ok {
			t.Errorf("no %q in %s", key, r.stdout)
		}
	}
	if got["fork_ns_median"] != nil || got["exit_status"] != 1.0 {
		t.Errorf("got %s", r.stdout)
	}
}

// Signals of the host reach the guest, which decides what they do; a second
// one soon after ends the sandbox all the same.
func TestHostSignals(t *testing.T) {
	testutil.RequireKVM(t)
	busybox := testutil.Busybox(t)
	const many = 100
	tests := []struct {
		name, script string
		signals      int
		status       int
		stdout       string
	}{
		{"default", `echo ready; sleep 1000`, 1, 130, "ready\n"},
		{"trapped", `trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done`, 1, 4, "ready\ncaught\n"},
		// Two that come while the sandbox is kept from running are one.
		{"ignored", `trap '' INT; echo ready; sleep 1000`, many, 130, "ready\n"},
		{"busy", `echo ready; while :; do :; done`, 1, 130, "ready\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), hangs)
			defer cancel()
			cmd := sandbox{}.command(ctx, []string{busybox, "sh", "-c", tt.script})
			var out lockedBuffer
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for !strings.Contains(out.String(), "ready") && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			time.Sleep(100 * time.Millisecond)
			for sent, waits := 0, true; waits; {
				if sent++; sent <= tt.signals {
					// Fails when it has ended meanwhile.
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
				select {
				case <-ended:
					waits = false
					if tt.signals == many && sent < 2 {
						t.Errorf("ended by the first signal, which is ignored")
					}
				case <-time.After(100 * time.Millisecond):
				}
			}
			if status := cmd.ProcessState.ExitCode(); status != tt.status || out.String() != tt.stdout {
				t.Errorf("status %d, stdout %q; want %d, %q", status, out.String(), tt.status, tt.stdout)
			}
		})
	}
}

// lockedBuffer is a bytes.Buffer that may be looked at while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
