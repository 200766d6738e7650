//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

func TestOpenNegotiates(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	available, err := Available(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("this kernel offers %v", available)
	const unknown = 1 << 50
	f, err := Open(Options{Required: FeatureMissingShmem, Optional: FeatureThreadID | FeatureExactAddress | unknown})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := FeatureMissingShmem | (FeatureThreadID|FeatureExactAddress)&available
	if f.Features() != want {
		t.Errorf("features %v, want %v", f.Features(), want)
	}
	// What the kernel keeps is what we say.
	if info, err := readInfo(f.Fd()); err != nil || info.features != want {
		t.Errorf("the kernel has %v, %v; want %v", info.features, err, want)
	}
	for _, flag := range []struct{ cmd, bit int }{{unix.F_GETFD, unix.FD_CLOEXEC}, {unix.F_GETFL, unix.O_NONBLOCK}} {
		if got, err := unix.FcntlInt(uintptr(f.Fd()), flag.cmd, 0); err != nil || got&flag.bit == 0 {
			t.Errorf("descriptor flags %#x, %v: lack %#x", got, err, flag.bit)
		}
	}
	if async, err := Open(Options{Required: FeatureWPAsync}); err == nil {
		defer async.Close()
		info, err := readInfo(async.Fd())
		if err != nil || info.features != async.Features() {
			t.Errorf("features %v, and the kernel has %v, %v", async.Features(), info.features, err)
		}
	} else if !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
	_, err = Open(Options{Required: FeatureMissingShmem | unknown})
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "bit50") || strings.Contains(err.Error(), "missing-shmem") {
		t.Errorf("a feature of no kernel: %v; want ErrNotSupported that names it alone", err)
	}
}

func TestOpenEachWay(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	for _, via := range []Via{ViaSyscall, ViaDevice} {
		f, err := Open(Options{Via: via})
		if err != nil {
			if _, statErr := os.Stat(devicePath); via == ViaDevice && statErr != nil && errors.Is(err, unix.ENOENT) {
				continue // a kernel before 6.1
			}
			t.Errorf("way %d: %v", via, err)
			continue
		}
		f.Close()
	}
}

// Faults in system calls are not for a userfaultfd of user mode alone.
func TestUserModeOnly(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	f, err := Open(Options{UserModeOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := &memory{FD: f, t: t}
	fd := testutil.NewMemfd(t, page)
	at := testutil.MapAnonymous(t, page)
	m.base, m.n = hva(at), 1
	m.register(Missing)
	if _, _, errno := unix.Syscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(at), 1, 0, 0, 0); errno != unix.EFAULT {
		t.Errorf("read(2) into a missing page: %v, want EFAULT", errno)
	}
	dup, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	if !f.UserModeOnly() || !dup.UserModeOnly() || opened(t, 0).UserModeOnly() {
		t.Error("what is of user mode alone does not say so, or something else does")
	}
}

// With no descriptor left both ways fail, both say so, and nothing is leaked.
func TestOpenWithoutDescriptors(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	withFewFiles(t, func() {
		_, err := Open(Options{})
		if !errors.Is(err, unix.EMFILE) || strings.Count(err.Error(), "too many open files") != 2 {
			t.Errorf("got %v, want EMFILE of both ways", err)
		}
	})
}

// withFewFiles runs fn while no descriptor can be opened.
func withFewFiles(t testing.TB, fn func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// The three of every Go program are open, and poll(2) takes no more descriptors
	// than the limit: a Waiter has three.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	fn()
}

// Somebody without privileges: the system call says EPERM and the device EACCES,
// and both are reported; once the device's mode allows it, it is open to them
// though the system call is not.
func TestTrap12BothWaysAreTriedAndReported(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	if os.Getuid() != 0 {
		t.Skip("runs a process as another user; run it as root")
	}
	if b, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); err != nil || strings.TrimSpace(string(b)) != "0" {
		t.Skip("everybody may call userfaultfd(2) here; set vm.unprivileged_userfaultfd to 0")
	}
	// Other users may not look into the directory of a test's temporary files.
	dir, err := os.MkdirTemp("", "guestmm-uffd-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "peer")
	if err := errors.Join(os.Chmod(dir, 0o755), copyFile(exe, os.Args[0])); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		mode fs.FileMode
		want string
	}{
		{"closed", 0o600, "device EACCES, syscall EPERM\n" + poorReport},
		{"open", 0o666, "opened\n"},
		{"absent", 0, "device ENOENT, syscall EPERM\n" + poorReport},
	} {
		t.Run(tc.name, func(t *testing.T) {
			device := filepath.Join(dir, tc.name)
			if tc.mode != 0 {
				makeDevice(t, device, tc.mode)
			}
			cmd := exec.Command(exe)
			cmd.Env = []string{peerEnv + "=open", peerDevice + "=" + device}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != tc.want {
				t.Errorf("got %q, %v; want %q", out, err, tc.want)
			}
		})
	}
}

const peerDevice = "GUESTMM_UFFD_PEER_DEVICE"

// peerOpen says what opening comes to for who runs it.
func peerOpen() error {
	devicePath = os.Getenv(peerDevice)
	f, err := Open(Options{})
	if err == nil {
		fmt.Println("opened")
		return f.Close()
	}
	device := "?"
	switch {
	case errors.Is(err, unix.EACCES):
		device = "EACCES"
	case errors.Is(err, unix.ENOENT):
		device = "ENOENT"
	}
	if !errors.Is(err, unix.EPERM) || !errors.Is(err, ErrNotPermitted) {
		return fmt.Errorf("no EPERM, or no ErrNotPermitted, in %w", err)
	}
	fmt.Printf("device %s, syscall EPERM\n", device)
	only, err := Open(Options{UserModeOnly: true})
	if err != nil {
		return err
	}
	defer only.Close()
	return peerReport()
}

// poorReport is what peerReport says to who has no rights.
const poorReport = "can serve: false\nuserfaultfd: lack, says what is to be had, cured by CAP_SYS_PTRACE\nothers: see userfaultfd\n"

// peerReport says what the report on the host comes to for who runs it.
func peerReport() error {
	cs := Report()
	fmt.Println("can serve:", cs.CanServe())
	others := "see userfaultfd"
	for _, c := range cs {
		switch c.Name {
		case probeUserfaultfd.name:
			says := "does not say"
			if strings.Contains(c.Detail, "no right") && strings.Contains(c.Detail, "user mode alone") && strings.Contains(c.Detail, "userfaultfd(2)") {
				says = "says"
			}
			cure := c.Cure
			if strings.Contains(cure, "CAP_SYS_PTRACE") && strings.Contains(cure, "/dev/userfaultfd") {
				cure = "CAP_SYS_PTRACE"
			}
			fmt.Printf("%s: %v, %s what is to be had, cured by %s\n", c.Name, c.Status, says, cure)
		case probeMove.name, probeEventRemove.name, probeMissingShmem.name:
			if c.Status != Inconclusive || !strings.HasSuffix(c.Detail, "see userfaultfd") {
				others = c.String()
			}
		}
	}
	fmt.Println("others:", others)
	return nil
}

func makeDevice(t testing.TB, path string, mode fs.FileMode) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/dev/userfaultfd", &st); err != nil {
		t.Skip("no device here:", err)
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil {
		t.Skip("cannot make a device:", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Flags&unix.ST_NODEV != 0 {
		t.Skip("devices do not work in the directory for temporary files; set TMPDIR")
	}
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

func TestFromFD(t *testing.T) {
	m := anonymous(t, 1, Missing, FeatureThreadID)
	fd, err := unix.FcntlInt(uintptr(m.Fd()), unix.F_DUPFD, 0) // without CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	f, err := FromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	if f.Features() != FeatureThreadID || f.Fd() != fd {
		t.Errorf("features %v of descriptor %d", f.Features(), f.Fd())
	}
	if got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || got&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", got, err)
	}
	if got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || got&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}

	if _, err := FromFD(fd); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a number that is open no more: %v", err)
	}
	memfd := testutil.NewMemfd(t, page)
	if _, err := FromFD(memfd); !errors.Is(err, ErrNotUserfaultfd) || !errors.Is(err, unix.EBADF) {
		t.Errorf("a memfd: %v, want ErrNotUserfaultfd", err)
	}
	if _, err := unix.Pread(memfd, make([]byte, 1), 0); err != nil {
		t.Errorf("after an error the descriptor is the caller's still: %v", err)
	}
	raw, err := openDescriptor(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	if _, err := FromFD(raw); !errors.Is(err, ErrNotNegotiated) {
		t.Errorf("without a handshake: %v, want ErrNotNegotiated", err)
	}
}
