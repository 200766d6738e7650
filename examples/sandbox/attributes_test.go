//go:build linux && amd64

package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Files in /tmp get times, owners and names, and are executed; limits hold; and what
// programs ask about memory and scheduling is answered: all as under Linux.
func TestAttributes(t *testing.T) {
	program := guest(t, "attributes")
	dir := fmt.Sprintf("/tmp/guestmm-attributes-%d", os.Getpid())
	t.Cleanup(func() { os.RemoveAll(dir) })
	want, err := exec.Command(program, dir).Output()
	if err != nil {
		t.Fatalf("under Linux: %v: %s", err, want)
	}
	sandbox{}.likeLinux(t, string(want), program, dir)
}

// GNU sort takes as much memory as sysinfo says there is: with a unit of 0 bytes it
// writes a file for each line.
func TestSortOfManyLines(t *testing.T) {
	bash := hostProgram(t, "bash")
	likeHost(t, "", bash, "-c", `for i in {1..5000}; do echo $((i * 7919 % 10007)); done | sort -n | md5sum`)
}

// Processes of Python's share locks and counters in /dev/shm.
func TestPythonMultiprocessing(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys; print(sys.executable)")
	likeHost(t, "", python, "-c", `
import multiprocessing as mp
v = mp.Value("i", 0)
def add():
    for i in range(50):
        with v.get_lock(): v.value += 1
ps = [mp.get_context("fork").Process(target=add) for _ in range(3)]
for p in ps: p.start()
for p in ps: p.join()
print(v.value)
from multiprocessing import shared_memory
s = shared_memory.SharedMemory(create=True, size=10000); s.buf[9999] = 7
t = shared_memory.SharedMemory(name=s.name); print(t.buf[9999]); t.close(); s.close(); s.unlink()`)
}

// An end of a pair of sockets that is shut down for writing is read to the end.
func TestShutdown(t *testing.T) {
	python := hostProgram(t, "python3", "-c", "import sys; print(sys.executable)")
	likeHost(t, "", python, "-c", `
import socket, select, threading
a, b = socket.socketpair()
data = bytes(range(256)) * 2000
w = threading.Thread(target=lambda: (a.sendall(data), a.shutdown(socket.SHUT_WR))); w.start()
got = b""
while piece := b.recv(50000): got += piece
w.join(); print(got == data, b.recv(1))
p = select.poll(); p.register(a); p.register(b); print([ev for _, ev in p.poll(0)])
b.send(b"back"); print(a.recv(9))
try: a.send(b"x")
except BrokenPipeError: print("EPIPE")
r = threading.Thread(target=lambda: print("read", a.recv(9))); r.start(); b.shutdown(socket.SHUT_RDWR); r.join(); print([ev for _, ev in p.poll(0)], b.recv(1))
print(a.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), repr(a.getsockname()), repr(b.getpeername()), a.family)
try: open("/dev/null").fileno() and socket.socket(fileno=open("/dev/null").fileno())
except OSError as e: print(e.errno)`)
}
