//go:build linux && amd64

package kernel

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPending(t *testing.T) {
	var p pending
	for _, info := range []sigInfo{
		{sig: 40, value: 1}, {sig: 10}, {sig: 10, pid: 7}, {sig: 40, value: 2}, {sig: 11}, {sig: 2},
	} {
		if !p.add(info) {
			t.Fatalf("no room for %+v", info)
		}
	}
	var order []int
	var values []uint64
	for {
		info, ok := p.take(^bit(2))
		if !ok {
			break
		}
		order = append(order, info.sig)
		values = append(values, info.value)
	}
	// A fault first, then by number; a low one once, a high one as often as sent.
	if !slices.Equal(order, []int{11, 10, 40, 40}) || !slices.Equal(values, []uint64{0, 0, 1, 2}) {
		t.Errorf("taken %v with %v", order, values)
	}
	if p.set != bit(2) || len(p.queue) != 1 {
		t.Errorf("left: %#x, %v", p.set, p.queue)
	}
	p.drop(bit(2))
	if p.set != 0 || len(p.queue) != 0 {
		t.Errorf("left after drop: %#x, %v", p.set, p.queue)
	}
}

func TestPendingIsBounded(t *testing.T) {
	var p pending
	n := 0
	for p.add(sigInfo{sig: 64}) {
		if n++; n > 2*maxQueued {
			t.Fatal("it has no end")
		}
	}
	if !p.add(sigInfo{sig: 64}) && n != maxQueued {
		t.Errorf("%d queued, want %d", n, maxQueued)
	}
}

func TestWaitStatus(t *testing.T) {
	for _, tt := range []struct {
		status waitStatus
		raw    uint32
		shell  int
		code   int
	}{
		{exitStatus(3), 0x300, 3, cldExited},
		{exitStatus(256 + 3), 0x300, 3, cldExited},
		{signalStatus(int(unix.SIGKILL)), 9, 137, cldKilled},
		{stopStatus(int(unix.SIGSTOP)), 0x137f, 0, cldStopped},
		{continuedStatus, 0xffff, 0, cldContinued},
	} {
		if uint32(tt.status) != tt.raw {
			t.Errorf("%#x, want %#x", uint32(tt.status), tt.raw)
		}
		if tt.shell != 0 && tt.status.shell() != tt.shell {
			t.Errorf("%#x is %d to a shell, want %d", tt.raw, tt.status.shell(), tt.shell)
		}
		if info := childInfo(5, tt.status); info.code != tt.code {
			t.Errorf("%#x has the code %d, want %d", tt.raw, info.code, tt.code)
		}
	}
}

func TestActionsAfterExec(t *testing.T) {
	var a actions
	a[1].Handler, a[2].Handler, a[2].Mask = sigIgnore, 0x1234, 7
	b := a.afterExec()
	if b[1].Handler != sigIgnore || b[2] != (action{}) {
		t.Errorf("got %+v and %+v", b[1], b[2])
	}
	if !b.ignores(1) || !b.ignores(int(unix.SIGCHLD)) || b.ignores(2) {
		t.Error("ignores is wrong")
	}
}
