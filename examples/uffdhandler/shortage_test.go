//go:build linux && amd64

package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// limitFiles has the server open no more than n descriptors from now on.
func (h *handler) limitFiles(n int) {
	h.t.Helper()
	var limit unix.Rlimit
	err := unix.Prlimit(h.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit)
	if err == nil {
		limit.Cur = min(uint64(n), limit.Max)
		err = unix.Prlimit(h.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

const (
	stallBegins = "clients wait: none can be let in"
	stallEnds   = "clients are let in again"
)

// A server that is short of descriptors serves those whom it serves, and refuses
// nobody: who comes waits until there is room, because somebody has gone or because
// the limit was raised. It says so once, and counts it.
func TestShortOfDescriptors(t *testing.T) {
	needHost(t)
	const n, seed = 256, 41
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false", "-metrics", ":0")
	// What the first client has the server open for good is not to be counted.
	warm := restored(t, whole(sock, n, seed))
	warm.does("check 0 1")
	warm.quits()
	h.waitFor("ended")
	h.metrics()
	before := h.fds()
	eventually(t, "the server's descriptors to be as before", func() bool {
		was := before
		before = h.fds()
		return was == before
	})
	good := restored(t, whole(sock, n, seed))
	h.waitFor("serving", 2)
	good.does("check 0 20")

	// Its metrics can still be asked for, and one more client does not fit.
	h.limitFiles(h.fds() + 12)
	waiting := []*client{restored(t, whole(sock, n, seed)), restored(t, whole(sock, n, seed))}
	for _, v := range waiting {
		v.tell("verify")
	}
	if e := h.waitFor(stallBegins)[0]; e["reason"] != "out_of_descriptors" {
		t.Errorf("clients wait for %v, want descriptors", e["reason"])
	}
	good.does("balloon 10 5")
	good.does("random 50 1")
	m := h.metrics()
	for name, want := range map[string]float64{
		"stalled": 1, `stalls_total{reason="out_of_descriptors"}`: 1, "guests": 1, `clients_total{outcome="served"}`: 2,
	} {
		if got := m["uffdhandler_"+name]; got != want {
			t.Errorf("while clients wait, %s is %v, want %v", name, got, want)
		}
	}
	good.does("verify")
	good.quits() // makes room for one
	h.waitFor(stallEnds)
	h.waitFor(stallBegins, 2) // for the other
	h.waitFor("serving", 3)
	h.limitFiles(1000)
	h.waitFor(stallEnds, 2)
	for _, v := range waiting {
		v.wants("ok")
		v.does("random 30 2")
		v.quits()
	}
	h.waitFor("ended", 4)
	h.keepsNoMoreThan(before)

	// No room for the connection itself: accept(2) fails.
	last := restored(t, whole(sock, n, seed))
	h.waitFor("serving", 5)
	h.limitFiles(h.fds())
	late := restored(t, whole(sock, n, seed))
	late.tell("verify")
	h.waitFor(stallBegins, 3)
	last.does("verify")
	h.limitFiles(1000)
	late.wants("ok")
	for _, v := range []*client{last, late} {
		v.does("verify")
		v.quits()
	}
	h.waitFor(stallEnds, 3)
	h.waitFor("ended", 6)
	h.keepsNoMoreThan(before)
	m = h.metrics()
	for name, want := range map[string]float64{
		"stalled": 0, `stalls_total{reason="out_of_descriptors"}`: 3, `clients_total{outcome="served"}`: 6,
		`guests_ended_total{outcome="gone"}`: 6,
	} {
		if got := m["uffdhandler_"+name]; got != want {
			t.Errorf("in the end %s is %v, want %v", name, got, want)
		}
	}
	for msg, most := range map[string]int{stallBegins: 3, stallEnds: 3, "client refused": 0} {
		if got := len(h.entries(msg)); got > most {
			t.Errorf("%d × %q in the log, want %d", got, msg, most)
		}
	}
	h.stop()
}

// A server that is told to stop while clients wait for descriptors does so at once.
func TestStopWhileClientsWait(t *testing.T) {
	needHost(t)
	const n, seed = 64, 42
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false")
	h.limitFiles(h.fds() + 4)
	v := restored(t, whole(sock, n, seed))
	h.waitFor(stallBegins)
	h.stop()
	v.does("hungup") // it knows that nobody serves it
	v.quits()
}

// One userfaultfd is served once, though its VMM connects again; the first
// connection does not notice.
func TestConnectsTwice(t *testing.T) {
	needHost(t)
	const n, seed = 64, 43
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false", "-metrics", ":0")
	v := restored(t, whole(sock, n, seed))
	v.does("check 0 8")
	before := h.fds()
	v.does("again")
	if e := h.waitFor("client refused")[0]; e["reason"] != "already_served" {
		t.Errorf("the second connection is refused by %v, want already_served", e["reason"])
	}
	h.keepsNoMoreThan(before)
	v.does("balloon 3 4")
	v.does("verify")
	if got := h.metrics()[`uffdhandler_clients_total{outcome="already_served"}`]; got != 1 {
		t.Errorf("%v clients are counted as served already, want 1", got)
	}
	v.quits()
	h.waitFor("ended")
	h.stop()
}
