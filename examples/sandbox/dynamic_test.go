//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// hostProgram finds a program of the host, past any script that chooses it.
func hostProgram(t *testing.T, name string, self ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s on this host; install it", name)
	}
	if len(self) > 0 {
		out, err := exec.Command(path, self...).Output()
		if err != nil {
			t.Skipf("%s does not say where it is: %v; repair it", name, err)
		}
		path = strings.TrimSpace(string(out))
	}
	return path
}

// likeHost runs a program under the host's kernel and in the sandbox.
func likeHost(t *testing.T, stdin string, program ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hangs)
	defer cancel()
	cmd := exec.CommandContext(ctx, program[0], program[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	if cmd.ProcessState == nil || ctx.Err() != nil {
		t.Fatalf("%q does not run on the host: %s", program, &errs)
	}
	r := sandbox{stdin: strings.NewReader(stdin)}.run(t, program...)
	r.want(t, cmd.ProcessState.ExitCode(), out.String())
	if r.stderr != errs.String() {
		t.Errorf("stderr %.800q, the host's %.800q", r.stderr, &errs)
	}
}

func TestBash(t *testing.T) {
	bash := hostProgram(t, "bash")
	for name, script := range map[string]string{
		"loop":         `s=0; for ((i = 0; i < 200; i++)); do s=$((s + i)); done; echo $s`,
		"pipeline":     `seq 1 500 | grep 7 | sort -rn | head -5 | tr '\n' ' '; echo ${PIPESTATUS[@]}`,
		"arrays":       `declare -A a=([x]=1 [y]=2); for k in $(printf '%s\n' "${!a[@]}" | sort); do echo $k=${a[$k]}; done`,
		"substitution": `x=$(echo a; echo b); echo "${x//$'\n'/,}"; cat <(echo one) <(echo two)`,
		"here":         "cat <<E; read -r l <<< 'a b'; echo \"[$l]\"\nx $((6*7))\nE",
		"functions":    `f() { local n=$1; ((n < 2)) && { echo $n; return; }; echo $(($(f $((n-1))) + $(f $((n-2))))); }; f 7`,
		"traps":        `trap 'echo usr1' USR1; kill -USR1 $$; (exit 3); echo $?; trap 'echo bye' EXIT; exit 4`,
		"jobs":         `sleep 0.2 & p=$!; wait $p; echo $?; sleep 20 & kill %1; wait $! 2>/dev/null; echo $?`,
		"regex":        `[[ abc123 =~ ([a-z]+)([0-9]+) ]] && echo ${BASH_REMATCH[2]} ${BASH_REMATCH[1]}; shopt -s extglob; x=foo.tar.gz; echo ${x%%.*}`,
		"stdin":        `while read -r a b; do echo "$b-$a"; done`,
		"coproc":       `coproc C { read x; echo "got $x"; }; echo hi >&${C[1]}; read y <&${C[0]}; echo $y`,
		"errors":       `nosuchcommand; echo $?; /etc; echo $?; cd /nosuch; echo $?`,
		"printf":       `printf '%05d %x %s %q\n' 42 255 'a b' 'c d'; echo {1..5} {a..c}; let 'x = 3 ** 4'; echo $x`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			likeHost(t, "1 2\n3 4\n", bash, "-c", script)
		})
	}
}

func TestPerl(t *testing.T) {
	perl := hostProgram(t, "perl", "-e", "print $^X")
	for name, script := range map[string]string{
		"hashes":  `my %h = map { $_ => $_ ** 2 } 1..100; print join(",", map { "$_=$h{$_}" } sort { $a <=> $b } keys %h), "\n"`,
		"regex":   `my $s = "The quick brown fox"; $s =~ s/(\w+)/\u\L$1/g; print "$s\n"; print join("|", $s =~ /o\w?/g), "\n"`,
		"pipes":   `open(my $p, "-|", "echo", "from a child") or die; print <$p>; close $p; print $? >> 8, "\n"; print ` + "`seq 3 | tac`",
		"fork":    `my $pid = fork(); if (!$pid) { exit 7 } waitpid($pid, 0); print $? >> 8, "\n"`,
		"modules": `use POSIX qw(floor); use List::Util qw(sum max); use Data::Dumper; $Data::Dumper::Sortkeys = 1; print floor(3.7), sum(1..10), max(3,9,2), Dumper({a=>[1,2]})`,
		"signals": `$SIG{ALRM} = sub { print "alarm\n"; exit 3 }; alarm 1; sleep 10`,
		"select":  `select(undef, undef, undef, 0.05); print "slept\n"; while (<STDIN>) { print length, "\n" }`,
		"die":     `local $@; eval { die "inner\n" }; print "caught $@"; die "at the end\n"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			likeHost(t, "ab\ncdef\n", perl, "-e", script)
		})
	}
}

func TestPython(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys; print(sys.executable)")
	for name, script := range map[string]string{
		"modules": `
import os, json, hashlib, re, collections, decimal, math, random, struct, zlib, datetime, functools, itertools
print(json.dumps({"a": [1, 2.5, None, True], "b": {"c": "é"}}, sort_keys=True))
print(hashlib.sha256(b"x" * 100000).hexdigest(), zlib.crc32(b"abc"), hashlib.md5(b"").hexdigest())
print(decimal.Decimal(1) / 7, math.comb(40, 20), random.Random(1).random(), struct.pack("<IH", 1, 2))
print(collections.Counter("mississippi").most_common(2), re.findall(r"\d+", "a1b22"), datetime.date(2024, 2, 29).isoformat())
print(os.path.exists("/nosuch"), sorted(set(os.listdir("/")) & {"etc", "usr", "tmp"}), os.stat("/").st_mode, os.getcwd())`,
		"subprocess": `
import subprocess, sys
print(subprocess.check_output(["echo", "hi"]), subprocess.run("echo a | tr a b; exit 3", shell=True, capture_output=True))
p = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(p.communicate(b"x" * 200000)[0] == b"x" * 200000, p.returncode)
try: subprocess.run(["/nosuch"])
except FileNotFoundError as e: print(e)
try: subprocess.run(["sleep", "10"], timeout=0.2)
except subprocess.TimeoutExpired as e: print("timeout")`,
		"files": `
import tempfile, os, mmap, shutil
d = tempfile.mkdtemp(dir="/tmp")
with open(d + "/f", "w") as f: f.write("line\n" * 1000)
print(os.path.getsize(d + "/f"), len(open(d + "/f").readlines()))
os.rename(d + "/f", d + "/g"); print(os.listdir(d))
with open(d + "/g", "rb") as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); print(m[5:9], m.find(b"ne", 100))
m = mmap.mmap(-1, 1 << 20); m[77] = 5; m.seek(77); print(m.read(1)); m.close()
shutil.rmtree(d); print(os.path.exists(d))`,
		"epoll": `
import select, os
r, w = os.pipe(); ep = select.epoll()
ep.register(r, select.EPOLLIN | select.EPOLLET); print(ep.poll(0))
os.write(w, b"a"); print(len(ep.poll(1)), len(ep.poll(0))); os.write(w, b"b"); print(len(ep.poll(1)))
e = os.eventfd(2, os.EFD_SEMAPHORE) if hasattr(os, "eventfd") else None
if e is not None: ep.register(e); print(len(ep.poll(0)), os.eventfd_read(e), os.eventfd_read(e), len(ep.poll(0)))
ep.unregister(r); os.close(w); print(ep.poll(0.01) == ([] if e is None else ep.poll(0)))
p = select.poll(); p.register(r); print([ev for _, ev in p.poll(0)])`,
		"stdin epoll": `
import select, sys, os
ep = select.epoll(); ep.register(0, select.EPOLLIN)
data = b""
while True:
    ep.poll(5)
    b = os.read(0, 100)
    if not b: break
    data += b
print(len(data), data[:8])`,
		"asyncio": `
import asyncio
async def work(i):
    await asyncio.sleep(0.01 * (5 - i)); return i
async def main():
    print(await asyncio.gather(*(work(i) for i in range(5))))
    q = asyncio.Queue(); await q.put(3); print(await q.get())
    try: await asyncio.wait_for(asyncio.sleep(10), 0.05)
    except asyncio.TimeoutError: print("timeout")
    r, w = await asyncio.wait_for(pair(), 5)
    w.write(b"over a socket\n"); print(await r.readline()); w.close()
async def pair():
    import socket
    a, b = socket.socketpair()
    r = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    a.setblocking(False); b.setblocking(False)
    class W:
        def write(self, d): b.send(d)
        def close(self): a.close(); b.close()
    def feed():
        r.feed_data(a.recv(100)); loop.remove_reader(a)
    loop.add_reader(a, feed)
    return r, W()
asyncio.run(main())`,
		"time": `
import time
a = time.monotonic(); t = time.time(); time.sleep(0.05); b = time.monotonic()
print(0.045 < b - a < 600, time.time() > t > 1.6e9, time.perf_counter() > 0, time.process_time() >= 0)
last = 0
for i in range(20000):
    n = time.monotonic_ns(); assert n >= last; last = n`,
		"memory": `
import gc
l = [bytearray(1 << 16) for _ in range(200)]; print(sum(len(x) for x in l)); del l[::2]; gc.collect()
d = {i: str(i) * 3 for i in range(100000)}; print(len(d), d[99999]); print(hash("x") == hash("x"))
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
print(deep(900))
try: deep(10 ** 6)
except RecursionError: print("recursion")`,
		"signals": `
import signal, os
signal.signal(signal.SIGUSR1, lambda s, f: print("usr1")); os.kill(os.getpid(), signal.SIGUSR1)
rung = []; signal.signal(signal.SIGALRM, lambda s, f: rung.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05); signal.pause(); signal.setitimer(signal.ITIMER_REAL, 0); print(rung[0])
pid = os.fork()
if pid == 0: os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`,
		"error": `import sys; print("to stderr", file=sys.stderr); sys.exit(3)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			likeHost(t, strings.Repeat("0123456789", 50), python, "-c", script)
		})
	}
}

// The interpreter and the libraries are those below the root, and no others.
func TestDynamicBelowRoot(t *testing.T) {
	bash := hostProgram(t, "bash")
	out, err := exec.Command("ldd", bash).Output()
	if err != nil {
		t.Skipf("ldd %s: %v; install the C library's tools", bash, err)
	}
	root := t.TempDir()
	put := func(path string) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err == nil {
			err = os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(root, path), raw, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(bash)
	s := sandbox{flags: []string{"-root", root}}
	r := s.start(t, []string{"-root", root, filepath.Join(root, bash), "-c", "echo x"})
	r.want(t, 126, "")
	r.oneLine(t, "interpreter")
	for _, path := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
		put(path)
	}
	s.run(t, filepath.Join(root, bash), "-c", `echo $((6*7)); cd /etc 2>/dev/null || echo contained`).want(t, 0, "42\ncontained\n")
	// execve says why as Linux does: ENOENT, and ELIBBAD rather than ENOEXEC.
	if err := os.WriteFile(filepath.Join(root, "lost"), withInterpreter(t, "/nosuch\x00"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bad"), withInterpreter(t, "/bad-ld\x00"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bad-ld"), []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.run(t, filepath.Join(root, bash), "-c", `/lost 2>/dev/null; echo $?; /bad 2>/dev/null; echo $?`).want(t, 0, "127\n126\n")
}

// A dynamic linker can be run by itself, as a program.
func TestDynamicLinkerItself(t *testing.T) {
	const linker = "/lib64/ld-linux-x86-64.so.2"
	if _, err := os.Stat(linker); err != nil {
		t.Skipf("%v; install glibc", err)
	}
	likeHost(t, "", linker, hostProgram(t, "bash"), "-c", "echo by hand")
}

// A Go program waits by epoll, for pipes, children, timers and stdin.
func TestGoPoller(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no go command: the program cannot be built; put go into PATH")
	}
	program := filepath.Join(t.TempDir(), "gonet")
	build := exec.Command(goTool, "build", "-o", program, "testdata/gonet/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	for i := range 3 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			likeHost(t, strings.Repeat("line\n", 10000), program)
		})
	}
}
