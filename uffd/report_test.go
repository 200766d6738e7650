//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// A host of a test: files by path; what is not there does not exist.
func fakeHost(files map[string]string) *host {
	return &host{
		read: func(path string) (string, error) {
			if v, ok := files[path]; ok {
				return v, nil
			}
			return "", &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
		},
		release:      func() (string, error) { return "1.2.3", nil },
		newMemfd:     func() error { return unix.EPERM },
		kvmExtension: func(int) (int, error) { return 0, unix.EACCES },
	}
}

func TestChecks(t *testing.T) {
	const (
		unprivileged = "/proc/sys/vm/unprivileged_userfaultfd"
		status       = "/proc/self/status"
		total        = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
		free         = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
		thp          = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
		maps         = "/proc/sys/vm/max_map_count"
		limits       = "/proc/self/limits"
	)
	type files map[string]string
	for _, tc := range []struct {
		name  string
		files files
		check func(*host) Check
		want  Status
		has   string
	}{
		{"privileged only", files{unprivileged: "0"}, (*host).syscallAccess, Note, "CAP_SYS_PTRACE"},
		{"everybody", files{unprivileged: "1"}, (*host).syscallAccess, OK, "everybody"},
		{"no such setting", nil, (*host).syscallAccess, Inconclusive, "no such file"},
		{"capable", files{status: "Name:\tx\nCapEff:\t0000000000080000\n"}, (*host).capability, OK, "has it"},
		{"not capable", files{status: "CapPrm:\tffffffffffffffff\nCapEff:\t000001fffff7ffff\n"}, (*host).capability, Lack, "setcap"},
		{"odd status", files{status: "Name:\tx\n"}, (*host).capability, Inconclusive, "no CapEff"},
		{"pool", files{total: "8", free: "3"}, (*host).hugePages, OK, "3 of 8"},
		{"empty pool", files{total: "0", free: "0"}, (*host).hugePages, Lack, "vm.nr_hugepages"},
		{"used pool", files{total: "8", free: "0"}, (*host).hugePages, Lack, "0 of 8"},
		{"no hugetlb", nil, (*host).hugePages, Lack, "CONFIG_HUGETLBFS"},
		{"odd pool", files{total: "8", free: "x"}, (*host).hugePages, Inconclusive, `holds "x"`},
		{"thp never", files{thp: "always within_size advise [never] deny force"}, (*host).shmemHugePages, OK, "never"},
		{"thp advise", files{thp: "always within_size [advise] never deny force"}, (*host).shmemHugePages, OK, "advise"},
		{"thp always", files{thp: "[always] within_size advise never deny force"}, (*host).shmemHugePages, Note, "MADV_NOHUGEPAGE"},
		{"thp force", files{thp: "always within_size advise never deny [force]"}, (*host).shmemHugePages, Note, "force"},
		{"odd thp", files{thp: "always"}, (*host).shmemHugePages, Inconclusive, "selects nothing"},
		{"maps", files{maps: "262144"}, (*host).mapCount, OK, "262144"},
		{"few maps", files{maps: "1000"}, (*host).mapCount, Note, "vm.max_map_count=65530"},
		{"files", files{limits: "Limit  Soft  Hard\nMax open files            4096                 524288               files\n"}, (*host).openFiles, OK, "4096"},
		{"unlimited files", files{limits: "Max open files            unlimited            unlimited            files\n"}, (*host).openFiles, OK, "unlimited"},
		{"few files", files{limits: "Max open files            256                  524288               files\n"}, (*host).openFiles, Note, "RLIMIT_NOFILE"},
		{"odd limits", files{limits: "nothing"}, (*host).openFiles, Inconclusive, "no open files"},
		{"kernel", nil, (*host).kernel, OK, "Linux 1.2.3"},
		{"no memfd", nil, (*host).memfd, Lack, "seccomp"},
		{"no kvm", nil, (*host).kvm, Lack, "/dev/kvm"},
		{"no kvm to ask", nil, (*host).asyncFaults, Inconclusive, "permission denied"},
	} {
		c := tc.check(fakeHost(tc.files))
		if c.Status != tc.want || !strings.Contains(c.String(), tc.has) || c.Name == "" {
			t.Errorf("%s: got %q, want %v with %q", tc.name, c, tc.want, tc.has)
		}
		if c.Status == Lack && c.Cure == "" {
			t.Errorf("%s: a lack without a cure", tc.name)
		}
	}
	h := fakeHost(nil)
	h.kvmExtension = func(n int) (int, error) { return 1, nil }
	if c := h.asyncFaults(); c.Status != Note || !strings.Contains(c.Cure, "0x4b564d02") {
		t.Errorf("got %v", c)
	}
}

// The report on this machine, each claim held against another way to know it.
func TestReportOnThisMachine(t *testing.T) {
	cs := Report()
	t.Logf("\n%v", cs)
	byName := make(map[string]Check)
	for _, c := range cs {
		if _, twice := byName[c.Name]; twice || c.Name == "" {
			t.Errorf("check %q stands twice, or has no name", c.Name)
		}
		if strings.Contains(c.String(), "\n") {
			t.Errorf("check %q is more than one line", c.Name)
		}
		if c.Status == Lack && c.Cure == "" {
			t.Errorf("%v: a lack without a cure", c)
		}
		byName[c.Name] = c
	}
	agree := func(name string, ok bool) {
		t.Helper()
		c, found := byName[name]
		if !found || (c.Status == OK) != ok {
			t.Errorf("%v: the machine says %v", c, ok)
		}
	}
	// By other calls than the report's own.
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno == 0 {
		unix.Close(int(fd))
	}
	dev, devErr := os.OpenFile(deviceName, os.O_RDWR, 0)
	if devErr == nil {
		dev.Close()
	}
	agree("userfaultfd", errno == 0 || devErr == nil)
	agree("device", devErr == nil)
	if cs.CanServe() != (errno == 0 || devErr == nil) {
		t.Errorf("CanServe is %v, and both ways to open: %v, %v", cs.CanServe(), errno, devErr)
	}
	header := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &header[0]); err == nil {
		agree("CAP_SYS_PTRACE", header[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0)
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var n int
		for line := range strings.Lines(string(b)) {
			fmt.Sscanf(line, "HugePages_Free: %d", &n)
		}
		agree("hugetlb-pool", n > 0) // where the default size is 2 MiB
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		kvm.Close()
	}
	agree("kvm", err == nil)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		agree("open-files", limit.Cur >= filesWanted)
	}
	agree("memfd", true)
	for _, p := range allProbes {
		if _, ok := byName[p.name]; !ok {
			t.Errorf("no line for %s", p.name)
		}
	}
}

func TestCanServe(t *testing.T) {
	for _, tc := range []struct {
		cs   Checks
		want bool
	}{
		{nil, false},
		{Checks{{Name: "userfaultfd", Status: OK}, {Name: "device", Status: Lack}}, true},
		{Checks{{Name: "device", Status: OK}, {Name: "userfaultfd", Status: Lack}}, false},
		{Checks{{Name: "userfaultfd", Status: Inconclusive}}, false},
	} {
		if got := tc.cs.CanServe(); got != tc.want {
			t.Errorf("%v: %v", tc.cs, got)
		}
	}
}

func TestProbeCheck(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Check
	}{
		{nil, Check{Name: "x"}},
		{ErrNotSupported, Check{"x", Lack, "unsupported operation (Linux 9.9 or later has it)", "use Linux 9.9 or later"}},
		{errors.Join(unix.EPERM, unix.EMFILE), Check{"x", Inconclusive, "the probe is inconclusive: operation not permitted; too many open files", "a cure"}},
	} {
		if got := newProbe("x", "9.9", "a cure", func() error { return tc.err }).check(); got != tc.want {
			t.Errorf("%v: got %+v, want %+v", tc.err, got, tc.want)
		}
	}
	if !slices.Contains(allProbes, probeUserfaultfd) {
		t.Error("the probe that CanServe asks for is not made")
	}
}

func TestReportNeedsNothing(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	withFewFiles(t, func() {
		if cs := Report(); len(cs) == 0 {
			t.Error("no report")
		}
	})
}
