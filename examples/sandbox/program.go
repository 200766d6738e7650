//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/demo"
	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// openProgram finds and opens what is to run. The Open's path is what
// /proc/self/exe will say: absolute, and the guest's name for it if it has one.
func openProgram(name string, tree *vfs.Tree) (*vfs.Open, error) {
	host, err := findProgram(name)
	if err != nil {
		return nil, err
	}
	f, err := vfs.OpenHost(host)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, &exitError{statusNotFound, fmt.Errorf("%s: not found", name)}
	case errors.Is(err, unix.EISDIR):
		return nil, notRunnable(fmt.Errorf("%s: is a directory", name))
	case err != nil:
		return nil, notRunnable(fmt.Errorf("%s: %w", name, err))
	}
	if !f.CanExecute() {
		f.Close()
		return nil, notRunnable(fmt.Errorf("%s: no permission to execute it", name))
	}
	if abs, err := filepath.Abs(host); err == nil {
		host = abs
	}
	if canonical, err := filepath.EvalSymlinks(host); err == nil {
		host = canonical
	}
	guest, _ := tree.GuestPath(host)
	return vfs.NewOpen(f, guest, unix.O_RDONLY), nil
}

// findProgram looks a name without a slash up in PATH. One that is there but
// cannot be executed is better reported than "not found".
func findProgram(name string) (string, error) {
	if name == "" {
		return "", &exitError{statusNotFound, errors.New(`"": not found`)}
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	second := ""
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if dir == "" {
			dir = "."
		}
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		switch {
		case err != nil || st.IsDir():
		case unix.Access(path, unix.X_OK) == nil:
			return path, nil
		case second == "":
			second = path
		}
	}
	if second != "" {
		return second, nil
	}
	return "", &exitError{statusNotFound, fmt.Errorf("%s: not found in PATH", name)}
}

// openDemo gives the embedded program a file to be loaded from.
func openDemo() (*vfs.Open, error) {
	fd, err := unix.MemfdCreate("demo", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, failed(fmt.Errorf("memfd_create: %w", err))
	}
	mem := os.NewFile(uintptr(fd), "demo")
	defer mem.Close()
	if _, err := mem.Write(demo.ELF); err != nil {
		return nil, failed(err)
	}
	f, err := vfs.OpenHost(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, failed(fmt.Errorf("demonstration: %w", err))
	}
	return vfs.NewOpen(f, "/demo", unix.O_RDONLY), nil
}
