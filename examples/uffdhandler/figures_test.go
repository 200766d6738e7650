//go:build linux && amd64

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/uffd/pager"
)

func readSet(t *testing.T, path string) *pager.WorkingSet {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ws, err := pager.ReadWorkingSet(f)
	if err != nil {
		t.Fatal(err)
	}
	return ws
}

func pagesOf(ws *pager.WorkingSet) (pages []uint64) {
	for _, r := range ws.Runs {
		for i := range r.N {
			pages = append(pages, r.First+i)
		}
	}
	slices.Sort(pages)
	return pages
}

// What two guests touch is recorded as one set; a third gets it ahead of time
// and then faults on nothing of it.
func TestRecordAndReplay(t *testing.T) {
	needHost(t)
	const n, seed = 512, 31
	sock, mem := socketIn(t), newImage(t, n, seed)
	dir := t.TempDir()
	set := filepath.Join(dir, "set")
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-record", set)
	for _, pages := range []string{"check 100 30", "check 120 30"} {
		v := restored(t, whole(sock, n, seed))
		v.does("%s", pages)
		v.quits()
	}
	h.waitFor("ended", 2)
	h.stop()
	ws := readSet(t, set)
	var want []uint64
	for p := uint64(100); p < 150; p++ {
		want = append(want, p)
	}
	if got := pagesOf(ws); !slices.Equal(got, want) {
		t.Errorf("recorded %v, want %v", got, want)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("beside the set there are %v, %v", files, err)
	}

	// Of the pages some are holes, which are not read ahead.
	holes := 0
	for _, p := range want {
		if isHole(p) {
			holes++
		}
	}
	h = startHandler(t, "listening", "-listen", sock, "-mem", mem, "-workingset", set, "-fill=false", "-metrics", ":0", "-record", set)
	v := restored(t, whole(sock, n, seed))
	eventually(t, "the set to be there", func() bool {
		return h.metrics()["uffdhandler_pages_ahead_total"] == float64(len(want)-holes)
	})
	v.does("check 100 50")
	if got := h.metrics()[`uffdhandler_faults_total{kind="missing"}`]; got != float64(holes) {
		t.Errorf("%v faults on a set that is there, want %d, on holes", got, holes)
	}
	v.does("check 10 5")
	v.quits()
	h.waitFor("ended")
	h.stop()
	if got := readSet(t, set).Len(); got != uint64(len(want)+5) {
		t.Errorf("%d pages after a second run, want those of the first and five more", got)
	}
}

func TestWorkingSetOfAnotherImage(t *testing.T) {
	needHost(t)
	sock, mem := socketIn(t), newImage(t, 64, 1)
	set := filepath.Join(t.TempDir(), "set")
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-record", set)
	v := restored(t, whole(sock, 64, 1))
	v.does("check 1 1")
	v.quits()
	h.waitFor("ended")
	h.stop()
	out, err := self(t, beHandler+"=1", "-listen", sock, "-mem", newImage(t, 64, 2), "-workingset", set).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "belongs to another image") {
		t.Errorf("got %v, %q", err, out)
	}
	if err := os.WriteFile(set, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = self(t, beHandler+"=1", "-listen", sock, "-mem", mem, "-workingset", set).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "bad working-set file") {
		t.Errorf("got %v, %q", err, out)
	}
}

// The figures of a run in which everything is known.
func TestMetricsAddUp(t *testing.T) {
	needHost(t)
	const n, seed = 256, 32
	holes := 0
	for p := range uint64(n) {
		if isHole(p) {
			holes++
		}
	}
	sock, mem := socketIn(t), newImage(t, n, seed)
	h := startHandler(t, "listening", "-listen", sock, "-mem", mem, "-fill=false", "-metrics", "0")
	// The guest goes on before its fault is counted, and the server learns of
	// its end later still: the figures follow. They only grow, so that one that
	// is too high stays so.
	wants := func(when string, want map[string]float64) {
		t.Helper()
		var differ []string
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			m := h.metrics()
			differ = nil
			for name, v := range want {
				if got, there := m["uffdhandler_"+name]; got != v || !there {
					differ = append(differ, fmt.Sprintf("%s is %v (there: %v), want %v", name, got, there, v))
				}
			}
			if len(differ) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s, %s", when, strings.Join(differ, "; "))
			}
		}
	}
	if a := h.waitFor("metrics")[0]["address"].(string); !strings.HasPrefix(a, "127.0.0.1:") {
		t.Errorf("metrics are served at %s, want loopback", a)
	}
	v := restored(t, whole(sock, n, seed))
	wants("at first", map[string]float64{"guests": 1, "pages_missing": n - float64(holes), `pages_total{outcome="copied"}`: 0})
	v.does("verify")
	v.does("balloon 0 10")
	v.does("check 0 10")
	after := map[string]float64{
		"guests": 1, "pages_missing": 0, "pages_parked": 0,
		`faults_total{kind="missing"}`:          n + 10,
		`pages_total{outcome="copied"}`:         n - float64(holes),
		`pages_total{outcome="zeroed"}`:         float64(holes) + 10,
		`pages_total{outcome="removed"}`:        10,
		`pages_total{outcome="failed"}`:         0,
		`events_total{kind="remove"}`:           10,
		`source_errors_total`:                   0,
		`fault_seconds_count{outcome="copied"}`: n - float64(holes),
		`fault_seconds_count{outcome="zeroed"}`: float64(holes) + 10,
		`clients_total{outcome="served"}`:       1,
	}
	wants("in the end", after)
	v.quits()
	h.waitFor("ended")
	after["guests"] = 0
	after[`guests_ended_total{outcome="gone"}`] = 1
	wants("after the end", after) // what a guest has counted stays
	h.stop()
}

// The doctor says of this machine what is so.
func TestDoctor(t *testing.T) {
	canServe := 0
	if uffd.HaveUserfaultfd() != nil {
		canServe = statusFailed
	}
	var text, asJSON, errs bytes.Buffer
	if got := doctor(nil, &text, &errs); got != canServe {
		t.Errorf("status %d, want %d; %s", got, canServe, errs.String())
	}
	if got := doctor([]string{"-json"}, &asJSON, &errs); got != canServe {
		t.Errorf("status %d with -json, want %d", got, canServe)
	}
	var report struct {
		CanServe bool `json:"can_serve"`
		Checks   []finding
	}
	if err := json.Unmarshal(asJSON.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if report.CanServe != (canServe == 0) {
		t.Errorf("can_serve is %v", report.CanServe)
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(host.Release[:])
	_, kvmErr := os.Stat("/dev/kvm")
	facts := map[string]error{
		"userfaultfd": uffd.HaveUserfaultfd(), "device": uffd.HaveDevice(), "event-remove": uffd.HaveEventRemove(),
		"minor-shmem": uffd.HaveMinorShmem(), "wp-async": uffd.HaveWPAsync(), "move": uffd.HaveMove(), "kvm": kvmErr,
	}
	seen := map[string]bool{}
	for _, c := range report.Checks {
		seen[c.Name] = true
		if fact, ok := facts[c.Name]; ok && (fact == nil) != (c.Status == "ok") {
			t.Errorf("%s is %q, and the fact is: %v", c.Name, c.Status, fact)
		}
		if c.Name == "kernel" && !strings.Contains(c.Detail, release) {
			t.Errorf("the kernel is said to be %q, want %s", c.Detail, release)
		}
		if c.Status == "lack" && c.Cure == "" {
			t.Errorf("%s lacks and has no cure", c.Name)
		}
		if !strings.Contains(text.String(), c.Name) {
			t.Errorf("%s is not in the text", c.Name)
		}
	}
	for name := range facts {
		if !seen[name] {
			t.Errorf("nothing is said of %s", name)
		}
	}
	if doctor([]string{"-x"}, &text, &errs) != statusUsage {
		t.Error("a wrong flag is taken")
	}
}

// failingWriter fails as a full disk does.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }

// A host that cannot serve is told so, and its lacks are text.
func TestDoctorOfAPoorHost(t *testing.T) {
	poor := uffd.Checks{{Name: "userfaultfd", Status: uffd.Lack, Detail: "nobody may", Cure: "be somebody"}}
	var text bytes.Buffer
	if err := printReport(&text, poor, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"userfaultfd", "nobody may", "be somebody", "cannot serve"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in %q", want, text.String())
		}
	}
	if err := printReport(failingWriter{}, poor, false); err == nil {
		t.Error("a report that could not be written is no error")
	}
}
