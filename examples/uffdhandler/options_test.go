//go:build linux

package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/server"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd/pager"
)

func TestOptions(t *testing.T) {
	for args, want := range map[string]options{
		"-listen s -mem m":                     {listen: "s", standby: "s.standby", mem: "m", background: pager.FillAll},
		"-listen s -mem m -record r":           {listen: "s", standby: "s.standby", mem: "m", record: "r"},
		"-listen s -mem m -record r -fill":     {listen: "s", standby: "s.standby", mem: "m", record: "r", background: pager.FillAll},
		"-listen s -mem m -once -fill=false":   {listen: "s", standby: "s.standby", mem: "m", lifetime: server.FirstClient},
		"-takeover t -mem m -policy park":      {takeOver: "t", mem: "m", policy: pager.Park, background: pager.FillAll},
		"-listen s -takeover s.standby -mem m": {listen: "s", takeOver: "s.standby", mem: "m", background: pager.FillAll},
		"-listen s -mem m -policy standby":     {listen: "s", standby: "s.standby", mem: "m", policy: pager.Standby, background: pager.FillAll},
		"-listen s -mem m -metrics 9":          {listen: "s", standby: "s.standby", mem: "m", metrics: "127.0.0.1:9", background: pager.FillAll},
		"-listen s -mem m -metrics :9":         {listen: "s", standby: "s.standby", mem: "m", metrics: "127.0.0.1:9", background: pager.FillAll},
		"-listen s -mem m -metrics 0.0.0.0:9":  {listen: "s", standby: "s.standby", mem: "m", metrics: "0.0.0.0:9", background: pager.FillAll},
		"-listen s -mem m -metrics [::1]:9 -v": {listen: "s", standby: "s.standby", mem: "m", metrics: "[::1]:9", verbose: true, background: pager.FillAll},
	} {
		got, err := parseOptions(strings.Fields(args))
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		got.handshakeTimeout, got.standbyWait, got.retryEvery = 0, 0, 0
		if *got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", args, *got, want)
		}
	}
}

func TestWrongOptions(t *testing.T) {
	for _, args := range []string{
		"", "-listen s", "-mem m", "-listen s -mem m more", "-listen s -takeover s -mem m", "-listen s -mem m -policy maybe",
		"-takeover t -mem m -policy standby", "-listen s -takeover s.standby -mem m -policy standby",
		"-listen s -mem m -metrics a:b:c", "-listen s -mem m -retry-every 0s", "-nonsense",
	} {
		if o, err := parseOptions(strings.Fields(args)); err == nil {
			t.Errorf("%q is taken: %+v", args, o)
		}
		if got := run(strings.Fields(args), nil, discard(t)); got != statusUsage {
			t.Errorf("%q: status %d, want %d", args, got, statusUsage)
		}
	}
	var out bytes.Buffer
	if got := run([]string{"-h"}, &out, discard(t)); got != 0 || !strings.Contains(out.String(), "-listen SOCK") {
		t.Errorf("-h: status %d, %q", got, out.String())
	}
}

// discard is a file that forgets.
func discard(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// What cannot be started says why, in one line, and leaves nothing.
func TestCannotStart(t *testing.T) {
	dir := t.TempDir()
	ragged := dir + "/ragged"
	if err := os.WriteFile(ragged, []byte("not a page"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, good := dir+"/fifo", dir+"/good"
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.WriteFile(good, make([]byte, addr.PageSize), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-listen", dir + "/s", "-mem", dir + "/none"},
		{"-listen", dir + "/s", "-mem", ragged},
		{"-listen", dir + "/s", "-mem", dir},
		{"-listen", dir + "/s", "-mem", fifo}, // and does not wait for who writes to it
		{"-listen", dir + "/s", "-mem", "/dev/zero"},
		{"-listen", dir + "/s", "-mem", good, "-workingset", fifo},
	} {
		if got := run(args, nil, discard(t)); got != statusFailed {
			t.Errorf("%v: status %d, want %d", args, got, statusFailed)
		}
	}
	if _, err := os.Stat(dir + "/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a server that could not start leaves its socket: %v", err)
	}
}
