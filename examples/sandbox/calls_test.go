//go:build linux && amd64

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Limits on files, priorities, what a process is told of itself, other processes'
// memory, room for files, messages over sockets, pipes with names, locks, and what the
// unit of floating numbers objects to: as under Linux, line by line.
func TestCalls(t *testing.T) {
	program := guest(t, "calls")
	dir := fmt.Sprintf("/tmp/guestmm-calls-%d", os.Getpid())
	t.Cleanup(func() { os.RemoveAll(dir) })
	want, err := exec.Command(program, dir).Output()
	if err != nil {
		t.Fatalf("under Linux: %v: %s", err, want)
	}
	sandbox{}.likeLinux(t, string(want), program, dir)
}

// Little memory, data or stack allowed: programs end as under Linux, be it that they
// cannot be executed or that their linker says what it lacks.
func TestExecUnderLimits(t *testing.T) {
	bash := hostProgram(t, "bash")
	likeHost(t, "", bash, "-c", `exec 2>/dev/null; for kib in 64 1024 4096 16384 65536; do
	for what in v d; do (ulimit -$what $kib; exec /bin/true); echo $what $kib $?; done; done
	f() { (( $1 == 0 )) || f $(( $1 - 1 )); }; (ulimit -s 65536; exec bash -c 'ulimit -s'); (ulimit -s 512; exec /bin/echo small)`)
}

// A stack is as large as the limit said when the program was executed.
func TestLargeStack(t *testing.T) {
	perl := hostProgram(t, "perl", "-e", "print $^X")
	likeHost(t, "", hostProgram(t, "bash"), "-c", `(ulimit -s 262144; exec `+perl+` -e 'my $s = "(" x 200000 . ")" x 200000; my $re; $re = qr/(\((?:[^()]|(?1))*\))/; print "x" =~ $re ? 1 : 0, "\n"'); (ulimit -s 100; exec /bin/echo ok)`)
}

// Below /tmp the host's files can be changed, in memory: each name shows what was done
// last, and the host's own files stay as they were.
func TestOverlay(t *testing.T) {
	bash := hostProgram(t, "bash")
	make := func() (dir string) {
		dir = t.TempDir()
		for name, content := range map[string]string{
			"f1": "one", "f2": "two", "f3": "three", "f5": "five", "d/a": "", "d/b": "", "sub/deep/z": "deep", "gone/x": "x",
		} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const script = `cd $1 || exit 9; ls; echo new > n; cat n f1; echo more >> f1; cat f1; rm f2; ls; test -e f2; echo $?; echo again > f2; cat f2
touch d/x; ls d; rm d/a; ls d; rmdir d 2>/dev/null; echo $?; rm -r d; ls; mkdir d; ls -A d; mv f3 f4; cat f4; ls; mv f4 n; cat n; mv d e; ls
ln -s f1 l; cat l; chmod 600 f5; stat -c '%a %s %h' f5; ln f5 f6; cat f6; stat -c %h f5; truncate -s 3 f5; cat f6; echo
mv sub sub2; cat sub2/deep/z; find . | sort; rm -rf sub2 e; mkdir -p sub/deep; ls -A sub/deep; : > f1; wc -c <f1; touch -d @77 f6; stat -c %Y f6
rm -r gone; mkdir empty; mv empty gone; ls -A gone; echo y > gone/x; cat gone/x; mv n f1; cat f1; mkdir -p f1/x 2>/dev/null; echo $?; cd sub; rm -r deep; rmdir ../sub; ls .. ; cd /; rm -rf $1/*; ls -A $1`
	want, err := exec.Command(bash, "-c", script, "sh", make()).Output()
	if err != nil {
		t.Fatalf("under Linux: %v: %s", err, want)
	}
	dir := make()
	r := sandbox{}.run(t, bash, "-c", script, "sh", dir)
	r.want(t, 0, string(want))
	if raw, err := os.ReadFile(filepath.Join(dir, "f1")); err != nil || string(raw) != "one\n" {
		t.Errorf("the host's file is %q now: %v", raw, err)
	}
	for _, name := range []string{"f2", "d/a", "sub/deep/z", "gone/x"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "n")); err == nil {
		t.Error("a file of the guest's has come to be on the host")
	}
}

// What a program asks for that is not there is answered with ENOSYS and named.
func TestUnknownCallsAreNamed(t *testing.T) {
	perl := hostProgram(t, "perl", "-e", "print $^X")
	r := sandbox{flags: []string{"-stats"}}.run(t, perl, "-e", `print syscall(425, 1, 0), " ", $! + 0, "; "; print syscall(6000), " ", $! + 0, "\n" for 1, 2`)
	r.want(t, 0, "-1 38; -1 38\n-1 38\n")
	if r.report.UnknownCalls["io_uring_setup"] != 1 || r.report.UnknownCalls["syscall_6000"] != 2 {
		t.Errorf("the report names %v", r.report.UnknownCalls)
	}
	for _, part := range []string{"io_uring_setup 1", "syscall_6000 2"} {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("-stats lacks %q: %s", part, r.stderr)
		}
	}
}

// What a program is told of its own memory, files and limits is true: the same sentences
// hold as under Linux.
func TestWhatProcessesAreTold(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys; print(sys.executable)")
	likeHost(t, "", python, "-c", `
import ctypes, mmap, os, resource, shutil, subprocess, tempfile
rss = lambda: int(open("/proc/self/statm").read().split()[1])
m = mmap.mmap(-1, 64 << 20); before = rss()
for i in range(0, 2000 * 4096, 4096): m[i] = 1
grown = rss(); m.madvise(mmap.MADV_DONTNEED); fallen = rss()
print(1990 <= grown - before < 2600, fallen - before < 300)
status = dict(l.split(":\t") for l in open("/proc/self/status") if ":\t" in l)
print(int(status["VmRSS"].split()[0]) > 1000, int(status["VmHWM"].split()[0]) >= int(status["VmRSS"].split()[0]))
u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_maxrss > 1000, u.ru_minflt > 10)
value = ctypes.c_int(77); at = ctypes.addressof(value)
with open("/proc/self/mem", "r+b", 0) as f:
    f.seek(at); print(f.read(4)); f.seek(at); f.write(b"\x09\0\0\0"); print(value.value)
    f.seek(8)
    try: f.read(4)
    except OSError as e: print(e.errno)
print(subprocess.check_output(["cat", "/proc/self/environ"], env={"A": "b", "PATH": os.environ["PATH"]})[:4], "Max open files" in open("/proc/self/limits").read())
print(int(open("/proc/sys/vm/max_map_count").read()) > 1000, len(open("/proc/sys/kernel/random/uuid").read()), open("/proc/sys/kernel/random/uuid").read() != open("/proc/sys/kernel/random/uuid").read(), "max_map_count" in os.listdir("/proc/sys/vm"))
d = tempfile.mkdtemp(dir="/tmp"); v = os.statvfs(d); print(v.f_bavail > 0, v.f_blocks >= v.f_bfree, v.f_flag & 1, shutil.disk_usage(d).free > 1 << 20)
os.makedirs(d + "/a/b"); os.mkdir(d + "/c"); print(os.stat(d).st_nlink, os.stat(d + "/a/b").st_nlink)
for p in "/none/", "/a/": 
    try: open(d + p, "w")
    except OSError as e: print(e.errno)
open(d + "/x", "w").write("1"); open(d + "/y", "w").write("2"); print(subprocess.call(["mv", d + "/x", d + "/y"]), open(d + "/y").read())
`)
}
