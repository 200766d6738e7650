//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// restore makes a file that was cut short whole again, page by page from its
// end on, so that at no time it holds what it should not.
func restoreImage(t *testing.T, path, from string) {
	t.Helper()
	whole, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int(info.Size()); at < len(whole); at += page {
		if _, err := f.Write(whole[at : at+page]); err != nil {
			t.Fatal(err)
		}
	}
}

// cutShort leaves the first n pages of a file.
func cutShort(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n*page); err != nil {
		t.Fatal(err)
	}
}

// waits wants the VMM to wait for a page: its server has read a fault and has not
// answered it, for longer than that ever takes. It is no proof, and can only
// miss that it went on.
func (v *client) waits() {
	v.t.Helper()
	select {
	case got, running := <-v.answers:
		v.t.Fatalf("the VMM says %q (running: %v), and should wait for a page", got, running)
	case <-time.After(300 * time.Millisecond):
	}
}

// Who wants a page that is no longer in the file is killed; who does not, does
// not notice; and who comes then is refused.
func TestKillWhereTheFileShrinks(t *testing.T) {
	needHost(t)
	const n, seed = 256, 21
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false", "-metrics", ":0")
	before := h.fds()
	modest, hungry := h.restoresTwo(t, whole(sock, n, seed))
	hungry.does("check 0 200")
	cutShort(t, mem, n/2)
	hungry.does("check 0 200") // they are there
	hungry.tell("check 240 1")
	hungry.dies()
	if e := h.waitFor("ended")[0]; e["outcome"] != "truncated_file" {
		t.Errorf("the guest has ended by %v, want truncated_file", e["outcome"])
	}
	modest.does("check 0 %d", n/2)
	late := start(t, whole(sock, n, seed))
	late.wants("ok") // the VMM does not know yet
	if e := h.waitFor("client refused")[0]; e["reason"] != "truncated_file" {
		t.Errorf("a client of a file cut short is refused by %v", e["reason"])
	}
	modest.quits()
	late.cmd.Process.Kill()
	h.keepsNoMoreThan(before)
	m := h.metrics()
	if m[`uffdhandler_pages_total{outcome="failed"}`] < 1 || m[`uffdhandler_guests_ended_total{outcome="truncated_file"}`] != 1 {
		t.Errorf("a guest has failed and is not counted: %v", m)
	}
	h.stop()
}

// Memory that the server was not told of: whoever faults there, or gives it back,
// follows the policy, alone, and is counted.
func TestWhatIsOutsideEveryRegion(t *testing.T) {
	needHost(t)
	const n, seed = 64, 30
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false", "-metrics", ":0")
	before := h.fds()
	other := restored(t, whole(sock, n, seed))
	ends := 0
	for command, outcome := range map[string]string{"touch-hidden": "fault_outside", "drop-hidden": "stray_event"} {
		c := whole(sock, n, seed)
		c.Hidden = true
		v := restored(t, c)
		v.does("verify")
		v.tell("%s", command)
		v.diesAfter("ok")
		ends++
		if e := h.waitFor("ended", ends)[ends-1]; e["outcome"] != outcome {
			t.Errorf("%s: the guest has ended by %v, want %s", command, e["outcome"], outcome)
		}
	}
	m := h.metrics()
	for _, name := range []string{`faults_total{kind="outside"}`, `events_total{kind="stray"}`} {
		if got := m["uffdhandler_"+name]; got != 1 {
			t.Errorf("%s is %v, want 1", name, got)
		}
	}
	other.does("verify")
	other.quits()
	h.keepsNoMoreThan(before)
	h.stop()
}

// The policy kill, for the server's end.
func TestKillAtSIGTERM(t *testing.T) {
	needHost(t)
	const n, seed = 256, 22
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false")
	a, b := h.restoresTwo(t, whole(sock, n, seed))
	a.does("check 0 10")
	h.stop()
	a.dies()
	b.dies()
}

// A page that cannot be read is waited for; all others come; and once it can be
// read it comes too.
func TestParkUntilThePageCanBeRead(t *testing.T) {
	needHost(t)
	const n, seed = 256, 23
	sock, mem, whole2 := socketIn(t), newImage(t, n, seed), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "park", "-fill=false",
		"-retry-every", "20ms", "-metrics", ":0")
	v, other := h.restoresTwo(t, whole(sock, n, seed))
	cutShort(t, mem, n/2)
	v.tell("check 200 1")
	eventually(t, "a page to be parked", func() bool { return h.metrics()["uffdhandler_pages_parked"] == 1 })
	other.does("check 0 %d", n/2)
	v.waits()
	restoreImage(t, mem, whole2)
	v.wants("ok")
	v.does("verify")
	other.does("verify")
	v.quits()
	other.quits()
	h.stop()
}

// Under park a server that ends keeps the guests waiting, until another one
// takes them over; then they go on with what they had given back and written.
func TestParkAtSIGTERMAndTakeover(t *testing.T) {
	needHost(t)
	const n, seed = 256, 24
	sock, mem := socketIn(t), newImage(t, n, seed)
	a := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "park", "-fill=false")
	v, w := a.restoresTwo(t, whole(sock, n, seed))
	v.does("balloon 10 20")
	v.does("write 15 30 77")
	a.signal(unix.SIGTERM)
	a.waitFor("parked: the client waits for its pages", 2)
	v.tell("verify")
	v.waits()
	w.tell("crash") // one that ends meanwhile holds nobody up
	w.dies()
	b := startHandler(t, "listening", "-listen", sock, "-takeover", sock+".standby", "-mem", mem)
	v.wants("ok")
	a.ends(0)
	v.does("random 50 1")
	v.does("verify")
	b.stop() // complete by now, or killed
}

// The second signal is for who cannot wait: whoever would read zeroes is killed.
func TestParkAndASecondSignal(t *testing.T) {
	needHost(t)
	const n, seed = 64, 25
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "park", "-fill=false")
	v := restored(t, whole(sock, n, seed))
	h.waitFor("serving")
	h.signal(unix.SIGTERM)
	h.waitFor("parked: the client waits for its pages")
	h.signal(unix.SIGTERM)
	v.dies()
	h.ends(0)
}

// A page that one server cannot read is read by its standby server, and so is
// all that comes after it.
func TestStandbyServesOn(t *testing.T) {
	needHost(t)
	const n, seed = 256, 26
	sock, mem, good := socketIn(t), newImage(t, n, seed), newImage(t, n, seed)
	a := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "standby", "-fill=false", "-metrics", ":0")
	b := startHandler(t, "waiting for guests to take over", "-takeover", sock+".standby", "-mem", good, "-fill=false", "-metrics", ":0")
	beforeA, beforeB := a.fds(), b.fds()
	v, other := a.restoresTwo(t, whole(sock, n, seed))
	v.does("balloon 130 20")
	v.does("write 140 30 5")
	cutShort(t, mem, n/2)
	v.does("verify")
	if e := b.waitFor("taken over")[0]; e["pid"].(float64) != float64(v.cmd.Process.Pid) {
		t.Errorf("%v was taken over, want process %d", e, v.cmd.Process.Pid)
	}
	v.does("random 50 2")
	v.does("verify")
	other.does("check 0 100") // still the first one's
	for what, m := range map[string]map[string]float64{"out": a.metrics(), "in": b.metrics()} {
		if got := m[fmt.Sprintf(`uffdhandler_handovers_total{direction=%q,outcome="done"}`, what)]; got != 1 {
			t.Errorf("%v handovers %s, want 1", got, what)
		}
	}
	v.quits()
	other.quits()
	a.keepsNoMoreThan(beforeA)
	b.keepsNoMoreThan(beforeB)
	a.stop()
	b.stop()
}

// Nobody is there to take over: the guest is killed, and never sees zeroes.
func TestStandbyThatIsNotThere(t *testing.T) {
	needHost(t)
	const n, seed = 64, 27
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "standby", "-fill=false", "-standby-wait", "200ms")
	v, w := h.restoresTwo(t, whole(sock, n, seed))
	cutShort(t, mem, n/2)
	v.tell("check 50 1")
	v.dies()
	w.does("check 1 1")
	h.stop()
	w.dies()
}

// A standby server with another image takes nothing.
func TestStandbyOfAnotherImage(t *testing.T) {
	needHost(t)
	const n, seed = 64, 28
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-policy", "standby", "-fill=false")
	b := startHandler(t, "waiting for guests to take over", "-takeover", sock+".standby", "-mem", newImage(t, n, seed+1))
	before := b.fds()
	v := restored(t, whole(sock, n, seed))
	h.waitFor("serving")
	h.stop()
	v.dies()
	// The sender has its answer before the refusal is logged, so that the second
	// may be logged first.
	e := b.waitFor("nothing taken over", 2)
	if reasons := []any{e[0]["reason"], e[1]["reason"]}; !slices.Contains(reasons, "handover_failed") || !slices.Contains(reasons, "wrong_image") {
		t.Errorf("refused by %v, want the socket, which is not its own, and wrong_image", e)
	}
	b.keepsNoMoreThan(before)
	b.stop()
}

// A server is restarted under guests that run all the time, and under clients
// that connect all the time.
func TestRestartUnderLoad(t *testing.T) {
	needHost(t)
	const n, seed, guests = 512, 29, 4
	sock, mem := socketIn(t), newImage(t, n, seed)
	ways := [2]string{sock + ".1", sock + ".2"}
	server := func(i int) *handler {
		args := []string{"-listen", sock, "-mem", mem, "-policy", "standby", "-standby", ways[(i+1)%2], "-fill=false"}
		if i == 0 {
			return startHandler(t, "listening", args...)
		}
		return startHandler(t, "waiting for guests to take over", append(args, "-takeover", ways[i%2])...)
	}
	h := server(0)
	var all []*client
	for i := range guests {
		v := restored(t, whole(sock, n, seed))
		v.tell("random 800 %d", i)
		all = append(all, v)
	}
	for i := 1; i <= 3; i++ {
		next := server(i)
		h.signal(unix.SIGTERM)
		late := restored(t, whole(sock, n, seed)) // whoever accepts it, it is served
		late.tell("random 20 %d", i)
		h.ends(0)
		late.wants("ok")
		late.does("verify")
		late.quits()
		h = next
	}
	for _, v := range all {
		v.wants("ok")
		v.does("verify")
		v.quits()
	}
	h.stop()
	if refused := h.entries("client refused"); len(refused) > 0 {
		t.Errorf("a restart refuses clients: %v", refused)
	}
	if _, err := os.Stat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last server leaves the socket: %v", err)
	}
}
