//go:build linux && amd64

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/examples/sandbox/internal/demo"
)

func TestDemo(t *testing.T) {
	r := sandbox{}.run(t)
	if r.status != 0 || r.stderr != "" {
		t.Fatalf("status %d, stdout %s, stderr %s", r.status, r.stdout, r.stderr)
	}
	for _, part := range []string{"mapped and wrote 1024 pages", "none of the child's writes", "none of the parent's writes", "demo: done"} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("stdout lacks %q:\n%s", part, r.stdout)
		}
	}
	if r.report.Forks != 1 || r.report.PagesCopied < 1024 {
		t.Errorf("%d forks and %d pages copied, want 1 and at least 1024", r.report.Forks, r.report.PagesCopied)
	}
}

func TestDemoSize(t *testing.T) {
	if n := len(demo.ELF); n > 16<<10 {
		t.Errorf("the demonstration is %d bytes, more than 16 KiB", n)
	}
}

// The kept bytes do what their sources say: they are what the compiler makes of them,
// or, where that is another one than theirs, both are run and compared.
func TestBytesMatchSources(t *testing.T) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc: the bytes cannot be compared with their sources; install gcc")
	}
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "testdata", "internal/demo"} {
		if err := copyTree(name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("make", "-B", "-C", dir, "CC="+cc, "demo", "programs")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("the sources do not build here: %v: %s; they need a gcc for x86-64 with static linking, and make", err, out)
	}
	const always = "internal/demo/demo.elf" // is run, so that what compares is tested itself
	for _, tt := range []struct {
		file string
		args []string
	}{
		{always, nil},
		{"testdata/signals.elf", nil}, {"testdata/memory.elf", nil}, {"testdata/pie.elf", []string{"x"}},
		{"testdata/threads.elf", []string{"futex"}}, {"testdata/threads.elf", []string{"signals"}},
		{"testdata/crash.elf", []string{"jump"}}, {"testdata/crash.elf", nil},
		{"testdata/epoll.elf", nil}, {"testdata/partial.elf", nil}, {"testdata/clock.elf", []string{"calls", "1000"}},
		{"testdata/attributes.elf", []string{"/tmp/guestmm-attributes"}},
		{"testdata/calls.elf", []string{"/tmp/guestmm-calls"}},
	} {
		if tt.file != always && bytes.Equal(read(t, ".", tt.file), read(t, dir, tt.file)) {
			continue
		}
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			var runs [2]ran
			for i, root := range []string{".", dir} {
				program := filepath.Join(t.TempDir(), "program")
				if err := os.WriteFile(program, read(t, root, tt.file), 0o755); err != nil {
					t.Fatal(err)
				}
				runs[i] = sandbox{}.run(t, append([]string{program}, tt.args...)...)
			}
			if runs[0].status != runs[1].status || runs[0].stdout != runs[1].stdout {
				t.Errorf("%s: kept: %d %q; built: %d %q", tt.file, runs[0].status, runs[0].stdout, runs[1].status, runs[1].stdout)
			}
		})
	}
}

func read(t *testing.T, root, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o777); err != nil {
			return err
		}
		return os.WriteFile(target, raw, 0o666)
	})
}

func TestSignals(t *testing.T) {
	sandbox{}.run(t, guest(t, "signals")).want(t, 0, "signals are right\n")
}

func TestMemoryCalls(t *testing.T) {
	sandbox{}.run(t, guest(t, "memory")).want(t, 0, "memory is right\n")
}

func TestStaticPIE(t *testing.T) {
	sandbox{}.run(t, guest(t, "pie"), "x").want(t, 5, "static-pie\n")
}

// The programs that say what they find say the same under Linux itself.
func TestLikeLinux(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"f": 0o644, "text": 0o755, "x": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("0123456789"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("f", filepath.Join(dir, "l")), os.Mkdir(filepath.Join(dir, "d"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, arg string }{{"files", dir}, {"signals", ""}, {"memory", ""}, {"epoll", ""}} {
		program := guest(t, tt.name)
		want, err := exec.Command(program, tt.arg).Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", tt.name, err, want)
		}
		sandbox{}.likeLinux(t, string(want), program, tt.arg)
	}
}

// likeLinux runs a program that is to say what it has said under Linux.
func (s sandbox) likeLinux(t *testing.T, want, program string, args ...string) {
	t.Helper()
	r := s.run(t, append([]string{program}, args...)...)
	if r.status != 0 || r.stdout == want {
		r.want(t, 0, want)
		return
	}
	got := strings.Split(r.stdout, "\n")
	for i, line := range strings.Split(want, "\n") {
		if i >= len(got) || got[i] != line {
			t.Errorf("%s: %q, under Linux %q", filepath.Base(program), append(got, "")[min(i, len(got))], line)
		}
	}
}

// Whatever a guest does, it dies as under Linux, and of nothing else.
func TestCrashes(t *testing.T) {
	const segv, ill, trap, fpe = 139, 132, 133, 136
	program := guest(t, "crash")
	for how, status := range map[string]int{
		"read": segv, "write": segv, "writetext": segv, "readkernel": segv, "readupper": segv, "noncanonical": segv,
		"jump": segv, "jumpdata": segv, "jumpkernel": segv, "jumpnoncanonical": segv, "jumptop": segv,
		"overflow": segv, "badstack": segv, "badstacksignal": segv, "sigreturn": segv, "sigreturngarbage": segv,
		"hlt": segv, "cli": segv, "in": segv, "out": segv, "cr3": segv, "wrmsr": segv, "lidt": segv, "lgdt": segv,
		"vmcall": 0, // an exit, #UD or #GP, by the processor's maker
		"int80":  segv, "int13": segv, "int14": segv, "int3": trap, "ud2": ill, "div": fpe, "fpe": fpe, "align": segv,
		"sysenter": 0, // #UD or #GP, by the processor's maker
		"movss":    segv, "movds": segv, "farjump": segv, "iret": segv, "trap": trap, "iopl": segv,
		"unmapself": segv, "unmapall": segv, "execvewild": 3, "nothing": 77, "vsyscall": 42,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := sandbox{}.run(t, program, how)
			if r.stderr != "" || r.stdout != "" || (status != 0 && r.status != status) || (status == 0 && r.status != segv && r.status != ill) {
				t.Errorf("status %d, stdout %q, stderr %q; want status %d alone", r.status, r.stdout, r.stderr, status)
			}
		})
	}
}

func TestWildArguments(t *testing.T) {
	sandbox{}.run(t, guest(t, "wild")).want(t, 0, "survived\n")
}

func TestForkBomb(t *testing.T) {
	r := sandbox{env: []string{processesEnv + "=200"}}.run(t, guest(t, "bomb"))
	r.want(t, 0, "EAGAIN\n")
	if n := r.report.ProcessesMax; n > 200 {
		t.Errorf("%d processes at once, more than the limit", n)
	}
}

// Forking until the memory is used up is refused or fatal to the guest alone.
func TestForkBombInLittleMemory(t *testing.T) {
	r := sandbox{flags: []string{"-mem", "1M"}}.run(t, guest(t, "bomb"))
	if !(r.status == 0 && (r.stdout == "ENOMEM\n" || r.stdout == "EAGAIN\n")) && r.status != 137 {
		t.Errorf("status %d, stdout %q, stderr %.400q", r.status, r.stdout, r.stderr)
	}
}

func TestMemoryHogs(t *testing.T) {
	hog := guest(t, "hog")
	t.Run("touch", func(t *testing.T) {
		t.Parallel()
		r := sandbox{flags: []string{"-mem", "64MiB"}}.run(t, hog, "touch")
		r.want(t, 137, "")
		r.oneLine(t, "out of memory")
	})
	t.Run("areas", func(t *testing.T) {
		t.Parallel()
		sandbox{flags: []string{"-mem", "64MiB"}}.run(t, hog, "areas").want(t, 0, "ENOMEM\n")
	})
	t.Run("fork", func(t *testing.T) {
		t.Parallel()
		r := sandbox{flags: []string{"-mem", "128MiB"}}.run(t, hog, "fork")
		r.want(t, 0, "killed\n")
		if r.report.OutOfMemory == 0 {
			t.Error("no kill was counted")
		}
	})
}
