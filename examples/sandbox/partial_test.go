//go:build linux && amd64

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What calls on memory answer of which nothing, or a part alone, is there, what they
// leave behind, and whose limits hold after vfork: as under Linux, line by line.
func TestPartial(t *testing.T) {
	program, arg := guest(t, "partial"), "all"
	if fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1, 0, 0); errno != 0 {
		arg = "nouserfaultfd"
	} else {
		unix.Close(int(fd))
	}
	want, err := exec.Command(program, arg).Output()
	if err != nil {
		t.Fatalf("under Linux: %v: %s", err, want)
	}
	onVCPUs(t, func(t *testing.T, s sandbox) { s.likeLinux(t, string(want), program, arg) })
}

// What a read of stdin could not store is there for the next, whatever stdin is.
func TestPartialStdin(t *testing.T) {
	program := guest(t, "partial")
	data := make([]byte, 10_000)
	for i := range data {
		data[i] = byte(i * 13)
	}
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"file", "pipe"} {
		t.Run(kind, func(t *testing.T) {
			run := func(fn func(in *os.File) string) string {
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if kind == "file" {
					return fn(f)
				}
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if _, err := w.Write(data); err != nil { // it has room
					t.Fatal(err)
				}
				w.Close()
				return fn(r)
			}
			want := run(func(in *os.File) string {
				cmd := exec.Command(program, "stdin")
				cmd.Stdin = in
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("under Linux: %v: %s", err, out)
				}
				return string(out)
			})
			run(func(in *os.File) string {
				sandbox{stdin: in}.likeLinux(t, want, program, "stdin")
				return ""
			})
		})
	}
}
