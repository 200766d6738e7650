//go:build linux && amd64

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Files in /tmp that are mapped shared, cut and written by calls at the same time, by
// one process and by its children, do what they do on the host.
func TestSharedMappingsLikeHost(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys; print(sys.executable)")
	likeHost(t, "", python, "-IS", "-c", `
import mmap, os, signal, tempfile, resource, errno
P = mmap.PAGESIZE
d = tempfile.mkdtemp(dir="/tmp")
fd = os.open(d + "/f", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 3 * P + 100)
m = mmap.mmap(fd, 3 * P + 100)
m[0:5] = b"hello"
print(os.pread(fd, 5, 0), os.pwrite(fd, b"HE", 0), m[0:5], m.find(b"llo"))
m.flush()
p = mmap.mmap(fd, 3 * P, access=mmap.ACCESS_COPY)
p[10:14] = b"mine"
m[10:14] = b"ours"
print(p[10:14], m[10:14], os.pread(fd, 4, 10))
# A second description, a child, and a name that is gone.
fd2 = os.open(d + "/f", os.O_RDONLY)
os.unlink(d + "/f")
r = mmap.mmap(fd2, P, access=mmap.ACCESS_READ)
pid = os.fork()
if pid == 0:
    m[20:25] = b"child"
    os.pwrite(fd, b"wrote", 30)
    os._exit(0)
os.waitpid(pid, 0)
print(r[20:25], m[30:35], p[20:25])
try: mmap.mmap(fd2, P, access=mmap.ACCESS_WRITE)
except OSError as e: print(errno.errorcode[e.errno])
# Cut short: what is beyond is a bus error, and empty when it grows again.
m[2 * P] = 7
m[P + 200] = 9
os.ftruncate(fd, P + 100)
print(os.fstat(fd).st_size, m[P + 200])
def touch(at):
    pid = os.fork()
    if pid == 0:
        m[at]
        os._exit(0)
    s = os.waitpid(pid, 0)[1]
    return s if os.WIFEXITED(s) else signal.Signals(os.WTERMSIG(s)).name
print(touch(P), touch(2 * P), touch(3 * P))
os.ftruncate(fd, 4 * P)
print(touch(2 * P), m[2 * P], len(os.pread(fd, 9 * P, 0)))
os.pwrite(fd, b"x" * 10, 5 * P)
print(os.fstat(fd).st_size, m.size())
m.resize(5 * P)
m[4 * P:4 * P + 3] = b"end"
print(os.pread(fd, 3, 4 * P), os.fstat(fd).st_size)
m.close(); os.close(fd)
print(r[0:5])
# memfd between relatives
f = os.memfd_create("shared")
os.ftruncate(f, P)
a = mmap.mmap(f, P)
if os.fork() == 0:
    b = mmap.mmap(f, P)
    b[0:3] = b"kid"
    b.flush()
    os._exit(0)
os.wait()
print(a[0:3], os.pread(f, 3, 0))
# Limits
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, resource.RLIM_INFINITY))
try: mmap.mmap(-1, 1 << 30)
except OSError as e: print(errno.errorcode[e.errno])
print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20, len(mmap.mmap(-1, 1 << 20)))
if os.fork() == 0:
    try: mmap.mmap(-1, 1 << 30)
    except OSError as e: print(errno.errorcode[e.errno], flush=True)
    os._exit(0)
os.wait()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_DATA, (1 << 20, resource.RLIM_INFINITY))
try: mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError as e: print(errno.errorcode[e.errno])
print(len(mmap.mmap(-1, 1 << 22)))
`)
}

// sqlite3 keeps its index of the write-ahead log in a file that its processes map
// shared. They come one after the other: the sandbox grants every lock.
func TestSQLiteLikeHost(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys, sqlite3; print(sys.executable)")
	likeHost(t, "", python, "-IS", "-c", `
import sqlite3, os, tempfile
d = tempfile.mkdtemp(dir="/tmp")
db = sqlite3.connect(d + "/db", isolation_level=None)
print(db.execute("pragma journal_mode=wal").fetchall(), db.execute("pragma mmap_size=1048576").fetchall())
db.execute("create table t(a integer primary key, b text)")
for i in range(300): db.execute("insert into t values(?, ?)", (i, "x" * i))
db.close()
for k in range(3):
    if os.fork() == 0:
        db = sqlite3.connect(d + "/db", isolation_level=None, timeout=30)
        for i in range(50): db.execute("update t set b = b || ? where a = ?", (str(k), i))
        db.close()
        os._exit(0)
    os.wait()
db = sqlite3.connect(d + "/db")
print(db.execute("select count(*), sum(length(b)), max(b) from t where a < 50").fetchall())
print(db.execute("pragma integrity_check").fetchall())
`)
}

const namesSource = `
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
static void show(void) {
	char line[512];
	FILE *f = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, f))
		if (strstr(line, "[anon"))
			printf("%s", strchr(line, '[')), fflush(stdout);
	fclose(f);
}
static int name(void *at, long n, const char *s) { errno = 0; prctl(0x53564d41, 0, at, n, s); return errno; }
int main(void) {
	char *p = mmap(0, 4 * 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *q = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char a[100];
	memset(a, 'a', 80), a[80] = 0;
	printf("%d %d %d", name(p + 4096, 8192, "heap of x"), name(q, 4096, "shared one"), name(p, 4096, a));
	a[79] = 0;
	printf(" %d %d", name(p + 1, 4096, "x"), name(p, 4096, "no [brackets]"));
	printf(" %d %d\n", name(p, 4096, (char *)8), name((char *)4096, 4096, "hole"));
	show();
	printf("%d %d\n", name(p + 4096, 8192, 0), name(q, 4096, a));
	show();
	return 0;
}
`

// The names that a program gives its memory are in its list of areas. (They are an
// option of the host's kernel, which may not have it.)
func TestAreaNames(t *testing.T) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc; install it")
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "names.c"), filepath.Join(dir, "names")
	if err := os.WriteFile(source, []byte(namesSource), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-O1", "-static", "-o", program, source).CombinedOutput(); err != nil {
		t.Skipf("gcc cannot link statically: %v: %s; install a static libc", err, out)
	}
	r := sandbox{}.run(t, program)
	long := strings.Repeat("a", 79)
	r.want(t, 0, "0 0 22 22 22 14 12\n[anon_shmem:shared one]\n[anon:heap of x]\n0 0\n[anon_shmem:"+long+"]\n")
}
