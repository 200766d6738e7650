//go:build linux && amd64

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

var soak = flag.Bool("soak", false, "run the soak as a whole; else a hundredth of it")

// The tests run server and VMMs as processes of their own: this test binary
// again, which is one of them when the environment says so.
const (
	beHandler = "UFFDHANDLER_TEST_RUN"
	beVMM     = "UFFDHANDLER_TEST_VMM"

	// statusLeaked is what a server exits with if it leaves a goroutine.
	statusLeaked = 99
	// patience bounds every wait; it is not what is tested.
	patience = time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv(beHandler) != "" {
		os.Exit(runHandler())
	}
	if config := os.Getenv(beVMM); config != "" {
		runVMM(config)
	}
	testutil.Main(m)
}

func runHandler() int {
	os.Unsetenv(beHandler)
	before := runtime.NumGoroutine()
	status := run(os.Args[1:], os.Stdout, os.Stderr)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= before+1 { // os/signal keeps one
			return status
		}
	}
	buf := make([]byte, 1<<16)
	fmt.Fprintf(os.Stderr, "goroutines left:\n%s\n", buf[:runtime.Stack(buf, true)])
	return statusLeaked
}

func needHost(t *testing.T) {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	testutil.RequireKVM(t)
}

// self is this test binary, as a process to be.
func self(t *testing.T, env string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// Under the race detector a process would sleep for a second at its end.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), env)
	return cmd
}

// newImage writes an image of n pages, with holes, and returns its path.
func newImage(t *testing.T, n, seed uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mem")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n * page)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, page)
	for p := range n {
		if isHole(p) {
			continue
		}
		for i := range uint64(page / 8) {
			binary.LittleEndian.PutUint64(b[i*8:], word(p*page/8+i, seed))
		}
		if _, err := f.WriteAt(b, int64(p*page)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// handler is a server in a process of its own.
type handler struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended, and its log was read

	mu  sync.Mutex
	log []map[string]any // guarded by mu
	raw bytes.Buffer     // guarded by mu
}

// startHandler starts a server and waits until it says that it is ready.
func startHandler(t *testing.T, ready string, args ...string) *handler {
	t.Helper()
	// A client on a busy machine may take longer than a server should wait.
	args = append([]string{"-handshake-timeout", patience.String(), "-json"}, args...)
	h := &handler{t: t, cmd: self(t, beHandler+"=1", args...), done: make(chan struct{})}
	stderr, err := h.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			var entry map[string]any
			h.mu.Lock()
			fmt.Fprintln(&h.raw, lines.Text())
			if json.Unmarshal(lines.Bytes(), &entry) == nil {
				h.log = append(h.log, entry)
			}
			h.mu.Unlock()
		}
		_ = h.cmd.Wait()
	}()
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		<-h.done
		if t.Failed() {
			h.mu.Lock()
			t.Logf("the server's log:\n%s", h.raw.String())
			h.mu.Unlock()
		}
	})
	h.waitFor(ready)
	return h
}

// entries returns the log's entries with a message.
func (h *handler) entries(msg string) (out []map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.log {
		if e["msg"] == msg {
			out = append(out, e)
		}
	}
	return out
}

// waitFor waits until the log has n entries with a message; n is 1 if not given.
func (h *handler) waitFor(msg string, n ...int) []map[string]any {
	h.t.Helper()
	want := append(n, 1)[0]
	eventually(h.t, fmt.Sprintf("%d × %q in the log", want, msg), func() bool {
		return len(h.entries(msg)) >= want || h.hasEnded()
	})
	got := h.entries(msg)
	if len(got) < want {
		h.t.Fatalf("the server has ended with %d × %q in its log, want %d", len(got), msg, want)
	}
	return got
}

func (h *handler) hasEnded() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// ends waits for the end and wants a status.
func (h *handler) ends(status int) {
	h.t.Helper()
	select {
	case <-h.done:
	case <-time.After(patience):
		h.cmd.Process.Signal(unix.SIGQUIT)
		h.t.Fatal("the server does not end")
	}
	if got := h.cmd.ProcessState.ExitCode(); got != status {
		h.t.Errorf("the server ended with %v, want status %d", h.cmd.ProcessState, status)
	}
}

func (h *handler) signal(sig unix.Signal) {
	h.t.Helper()
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
}

// stop sends SIGTERM and wants a good end.
func (h *handler) stop() {
	h.t.Helper()
	h.signal(unix.SIGTERM)
	h.ends(0)
}

// fds returns how many descriptors the server has.
func (h *handler) fds() int {
	h.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(entries)
}

// keepsNoMoreThan waits until the server has given back what it opened.
func (h *handler) keepsNoMoreThan(fds int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("the server to have %d descriptors", fds), func() bool { return h.fds() <= fds })
}

// metrics scrapes the server: name{labels} → value.
func (h *handler) metrics() map[string]float64 {
	h.t.Helper()
	address := h.waitFor("metrics")[0]["address"].(string)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		h.t.Fatalf("metrics: %v, %v", resp.Status, err)
	}
	out := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil {
				out[line[:i]] = v
			}
		}
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// client is a VMM in a process of its own.
type client struct {
	t       *testing.T
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers chan string // closed when the process has ended
}

// start starts a VMM, which has not answered yet.
func start(t *testing.T, c vmmConfig) *client {
	t.Helper()
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	v := &client{t: t, cmd: self(t, beVMM+"="+string(config)), answers: make(chan string, 16)}
	v.cmd.Stderr = os.Stderr
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			v.answers <- lines.Text()
		}
		_ = v.cmd.Wait()
		close(v.answers)
	}()
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		v.stdin.Close()
		for range v.answers {
		}
		<-ended
	})
	return v
}

// restoresTwo restores two VMs, and waits until the handler serves both: a VMM goes on
// before the server has looked at it.
func (h *handler) restoresTwo(t *testing.T, c vmmConfig) (a, b *client) {
	t.Helper()
	a, b = restored(t, c), restored(t, c)
	h.waitFor("serving", 2)
	return a, b
}

// restored starts a VMM and waits until its guest can run.
func restored(t *testing.T, c vmmConfig) *client {
	t.Helper()
	v := start(t, c)
	v.wants("ok")
	return v
}

func (v *client) tell(format string, args ...any) {
	v.t.Helper()
	if _, err := fmt.Fprintf(v.stdin, format+"\n", args...); err != nil {
		v.t.Fatal(err)
	}
}

func (v *client) wants(want string) {
	v.t.Helper()
	select {
	case got, running := <-v.answers:
		if !running {
			v.t.Fatalf("the VMM has ended: %v", v.cmd.ProcessState)
		}
		if got != want {
			v.t.Fatalf("the VMM says %q, want %q", got, want)
		}
	case <-time.After(patience):
		v.t.Fatal("the VMM does not answer")
	}
}

// does has the VMM do something and wants it to be well.
func (v *client) does(format string, args ...any) {
	v.t.Helper()
	v.tell(format, args...)
	v.wants("ok")
}

// dies wants the VMM to be killed.
func (v *client) dies() {
	v.t.Helper()
	v.diesAfter("")
}

// diesAfter wants the VMM to be killed, perhaps after it has answered.
func (v *client) diesAfter(answer string) {
	v.t.Helper()
	for {
		select {
		case got, running := <-v.answers:
			if running && got == answer {
				continue
			}
			if running {
				v.t.Fatalf("the VMM says %q, and should have been killed", got)
			}
			if ws, ok := v.cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); !ok || ws.Signal() != unix.SIGKILL {
				v.t.Errorf("the VMM has ended by %v, want SIGKILL", v.cmd.ProcessState)
			}
			return
		case <-time.After(patience):
			v.t.Fatal("the VMM was not killed")
		}
	}
}

// quits ends the VMM.
func (v *client) quits() {
	v.t.Helper()
	v.stdin.Close()
	select {
	case _, running := <-v.answers:
		if running {
			v.t.Error("the VMM said more than it was asked for")
		}
	case <-time.After(patience):
		v.t.Fatal("the VMM does not end")
	}
}
