package testutil

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	busyboxEnv     = "GUESTMM_BUSYBOX"
	busyboxPackage = "busybox-static"
	busyboxCure    = "install a static busybox (apt-get install " + busyboxPackage + "), or name one by " + busyboxEnv
)

// Busybox returns the path of a static x86-64 busybox: the one that
// GUESTMM_BUSYBOX names, else one on PATH, else one fetched by apt-get
// download into the user's cache directory. It skips t where there is none,
// and fails it where GUESTMM_REQUIRE names busybox or GUESTMM_BUSYBOX names a
// file that will not do.
func Busybox(t testing.TB) string {
	t.Helper()
	if path := os.Getenv(busyboxEnv); path != "" {
		if err := checkStatic(path); err != nil {
			t.Fatalf("%s: %v", busyboxEnv, err)
		}
		return path
	}
	path, err := findBusybox()
	if err != nil {
		require(t, needBusybox, &lack{reason: err.Error(), cure: busyboxCure})
	}
	return path
}

func findBusybox() (string, error) {
	path, pathErr := exec.LookPath("busybox")
	if pathErr == nil {
		if pathErr = checkStatic(path); pathErr == nil {
			return path, nil
		}
	}
	path, err := fetchBusybox()
	if err != nil {
		return "", errors.Join(pathErr, err)
	}
	return path, nil
}

// checkStatic returns nil if the file is an x86-64 ELF that needs no
// interpreter.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%s is %v for %v, not x86-64", path, f.Class, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically", path)
		}
	}
	return nil
}

// fetchBusybox returns the cached binary, or fetches and unpacks Debian's
// package. Two test binaries may do so at once: each works in a directory of
// its own and renames the result into place.
func fetchBusybox() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "guestmm")
	cached := filepath.Join(cache, "busybox")
	if checkStatic(cached) == nil {
		return cached, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	unpacked, err := downloadBusybox(dir)
	if err != nil {
		return "", err
	}
	if err := checkStatic(unpacked); err != nil {
		return "", err
	}
	if err := os.Rename(unpacked, cached); err != nil {
		return "", err
	}
	return cached, nil
}

func downloadBusybox(dir string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := runIn(ctx, dir, "apt-get", "download", busyboxPackage+":amd64"); err != nil {
		return "", err
	}
	packages, err := filepath.Glob(filepath.Join(dir, busyboxPackage+"_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("apt-get download left %q in %s", packages, dir)
	}
	if err := unpackDeb(ctx, dir, packages[0]); err != nil {
		return "", err
	}
	// Where /bin is a link to /usr/bin the package may hold either.
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s holds no busybox", packages[0])
}

// unpackDeb uses dpkg-deb, or ar and tar where there is none.
func unpackDeb(ctx context.Context, dir, deb string) error {
	dpkgErr := runIn(ctx, dir, "dpkg-deb", "-x", deb, dir)
	if dpkgErr == nil {
		return nil
	}
	if err := runIn(ctx, dir, "ar", "x", deb); err != nil {
		return errors.Join(dpkgErr, err)
	}
	data, err := filepath.Glob(filepath.Join(dir, "data.tar.*"))
	if err != nil || len(data) != 1 {
		return fmt.Errorf("%s holds %q, not one data.tar", deb, data)
	}
	return runIn(ctx, dir, "tar", "xf", data[0])
}

func runIn(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// What a killed child leaves running may hold the output pipe open.
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	text := strings.TrimSpace(string(out))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
