//go:build linux && amd64

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// write makes an executable file and returns its path.
func write(t *testing.T, content []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each is refused by a status and one line; none of them gets to run.
func TestBadInput(t *testing.T) {
	good, err := os.ReadFile("testdata/crash.elf")
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(b []byte)) string {
		b := bytes.Clone(good)
		change(b)
		return write(t, b, 0o755)
	}
	le := binary.LittleEndian
	const firstProgram = 64 // offset of the first program header
	noCure := filepath.Join(t.TempDir(), "missing")
	tests := []struct {
		name   string
		args   []string
		status int
		line   string
	}{
		{"unknown flag", []string{"-nosuch"}, 125, "-nosuch"},
		{"bad size", []string{"-mem", "much", "x"}, 125, "64MiB"},
		{"negative size", []string{"-mem", "-1", "x"}, 125, "range"},
		{"no processors", []string{"-vcpus", "0", "x"}, 125, "-vcpus"},
		{"flag without value", []string{"-mem"}, 125, "-mem"},
		{"no root", []string{"-root", noCure, "x"}, 125, "no such file"},
		{"root is a file", []string{"-root", "/etc/passwd", "x"}, 125, "not a directory"},
		{"no program", []string{noCure}, 127, "not found"},
		{"not in PATH", []string{"nosuchprogram"}, 127, "not found"},
		{"empty name", []string{""}, 127, "not found"},
		{"below a file", []string{"/etc/passwd/x"}, 127, "not found"},
		{"directory", []string{"/"}, 126, "directory"},
		{"device", []string{"/dev/null"}, 126, "denied"},
		{"no permission", []string{write(t, good, 0o644)}, 126, "permission"},
		{"empty file", []string{write(t, nil, 0o755)}, 126, "not an ELF"},
		{"text", []string{write(t, []byte("hello\n"), 0o755)}, 126, "not an ELF"},
		{"script without interpreter", []string{write(t, []byte("#!/nosuch/interpreter\n"), 0o755)}, 126, "interpreter"},
		{"script of itself", []string{selfScript(t)}, 126, "symbolic links"},
		{"truncated header", []string{write(t, good[:30], 0o755)}, 126, "truncated"},
		{"truncated segment", []string{write(t, good[:400], 0o755)}, 126, "truncated"},
		{"32 bit", []string{edit(func(b []byte) { b[elf.EI_CLASS] = 1 })}, 126, "64-bit x86"},
		{"other machine", []string{edit(func(b []byte) { le.PutUint16(b[18:], uint16(elf.EM_AARCH64)) })}, 126, "64-bit x86"},
		{"dynamic without interpreter", []string{edit(func(b []byte) { le.PutUint32(b[firstProgram+56:], uint32(elf.PT_INTERP)) })}, 126, "interpreter"},
		{"interpreter is missing", []string{write(t, withInterpreter(t, "/nosuch/ld.so\x00"), 0o755)}, 126, "/nosuch/ld.so"},
		{"interpreter is text", []string{write(t, withInterpreter(t, "/etc/passwd\x00"), 0o755)}, 126, "interpreter"},
		{"interpreter is a directory", []string{write(t, withInterpreter(t, "/etc\x00"), 0o755)}, 126, "interpreter"},
		{"interpreter's name has no end", []string{write(t, withInterpreter(t, "/lib64/ld.so"), 0o755)}, 126, "interpreter"},
		{"interpreter's name is empty", []string{write(t, withInterpreter(t, "\x00\x00"), 0o755)}, 126, "interpreter"},
		{"interpreter's name is elsewhere", []string{edit(func(b []byte) {
			le.PutUint32(b[firstProgram+56:], uint32(elf.PT_INTERP))
			le.PutUint64(b[firstProgram+56+8:], 1<<63)
			le.PutUint64(b[firstProgram+56+32:], 20)
		})}, 126, "interpreter"},
		{"address overflow", []string{edit(func(b []byte) { le.PutUint64(b[firstProgram+16:], ^uint64(0xfff)) })}, 126, "address space"},
		{"size overflow", []string{edit(func(b []byte) { le.PutUint64(b[firstProgram+40:], ^uint64(0)) })}, 126, "address space"},
		{"offset overflow", []string{edit(func(b []byte) { le.PutUint64(b[firstProgram+8:], ^uint64(0xfff)) })}, 126, "truncated"},
		{"overlap", []string{overlapping(t, good)}, 126, "overlap"},
		{"address zero", []string{edit(func(b []byte) { le.PutUint64(b[firstProgram+16:], 0) })}, 126, ""},
		{"too little memory", []string{"-mem", "4KiB", write(t, good, 0o755)}, 126, "too little"},
		{"a little too little", []string{"-mem", "64KiB", write(t, good, 0o755)}, 126, "too little"},
		{"report nowhere", []string{"-json", noCure + "/x", write(t, good, 0o755), "nothing"}, 125, "-json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := sandbox{}.start(t, tt.args)
			r.want(t, tt.status, "")
			r.oneLine(t, tt.line)
			if strings.Contains(r.stderr, "goroutine") {
				t.Errorf("a stack trace: %s", r.stderr)
			}
		})
	}
}

// withInterpreter gives a program a PT_INTERP for its second header, with a
// name behind everything else.
func withInterpreter(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/crash.elf")
	if err != nil {
		t.Fatal(err)
	}
	header := b[64+56:]
	binary.LittleEndian.PutUint32(header, uint32(elf.PT_INTERP))
	binary.LittleEndian.PutUint64(header[8:], uint64(len(b)))
	binary.LittleEndian.PutUint64(header[32:], uint64(len(name)))
	return append(b, name...)
}

func selfScript(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!%s\n", path), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// overlapping gives a program a second segment over the first.
func overlapping(t *testing.T, good []byte) string {
	b := bytes.Clone(good)
	copy(b[64+56:64+2*56], b[64:64+56])
	return write(t, b, 0o755)
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		r := sandbox{}.start(t, []string{flag})
		r.want(t, 0, usage)
		if r.stderr != "" {
			t.Errorf("stderr %q", r.stderr)
		}
	}
}

// A host without KVM is told so in one line. The device
// cannot be taken away from the host that runs the test, but from a mount
// namespace of its own.
func TestNoKVM(t *testing.T) {
	program := guest(t, "crash")
	for _, tt := range []struct{ name, prepare, want string }{
		{"no device", "mount -t tmpfs none /dev", "no such file"},
		{"another device", "mount --bind /dev/null /dev/kvm", "kvm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out, err := exec.Command("unshare", "-m", "sh", "-c", tt.prepare).CombinedOutput(); err != nil {
				t.Skipf("no mount namespace can be made: %v: %s; run the test as root", err, out)
			}
			cmd := sandbox{}.command(t.Context(), nil)
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `exec unshare -m sh -c "$0"' && exec "$0" "$@"' "$@"`, tt.prepare, os.Args[0], program}
			wantOneLine(t, cmd, tt.want)
		})
	}
}

func TestNoPermission(t *testing.T) {
	program := guest(t, "crash")
	st, err := os.Stat("/dev/kvm")
	if err != nil || os.Getuid() != 0 || st.Mode()&0o006 != 0 {
		t.Skip("only root can become a user without permission on /dev/kvm, where there is one; run the test as root")
	}
	dir, err := os.MkdirTemp("/tmp", "nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for from, to := range map[string]string{os.Args[0]: "sandbox", program: "program"} {
		raw, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), raw, 0o755)
		}
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := sandbox{}.command(t.Context(), []string{filepath.Join(dir, "program")})
	cmd.Path, cmd.Dir = filepath.Join(dir, "sandbox"), dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	wantOneLine(t, cmd, "permission denied")
}

// wantOneLine runs a sandbox that fails because of its host.
func wantOneLine(t *testing.T, cmd *exec.Cmd, part string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	r := ran{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	r.want(t, 125, "")
	r.oneLine(t, part)
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{
		"4096": 4096, "5000": 8192, "64K": 64 << 10, "64KiB": 64 << 10, "64kb": 64 << 10,
		"64MiB": 64 << 20, "1.5G": 3 << 29, "1GiB": 1 << 30, "1T": 1 << 40,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "1X", "1GG", "-1", "0", "1e400", "NaN", "Inf", "0x10", "1000T", "1 G M"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d", s, got)
		}
	}
}
