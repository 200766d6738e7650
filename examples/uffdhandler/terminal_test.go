//go:build linux && amd64

package main

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// On a terminal the fill is shown, and the log's lines are whole beside it.
func TestBarOnATerminal(t *testing.T) {
	needHost(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("%v; mount devpts", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const n, seed = 16384, 51 // the fill tells of itself every 16 MiB
	sock, mem := socketIn(t), newImage(t, n, seed)
	cmd := self(t, beHandler+"=1", "-listen", sock, "-mem", mem)
	cmd.Stderr = slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var mu sync.Mutex
	var shown bytes.Buffer // guarded by mu
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			k, err := master.Read(buf)
			mu.Lock()
			shown.Write(buf[:k])
			mu.Unlock()
			if err != nil { // EIO: nobody has the other side any more
				return
			}
		}
	}()
	defer func() {
		cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		<-done
	}()
	shows := func(what string) {
		t.Helper()
		eventually(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return bytes.Contains(shown.Bytes(), []byte(what))
		})
	}
	shows("msg=listening")
	v := restored(t, whole(sock, n, seed))
	shows("filling 1 guests")
	shows("outcome=complete")
	v.quits()
}
