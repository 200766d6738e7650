//go:build linux && amd64

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"github.com/guestmm/guestmm/internal/testutil"
)

func TestProfile(t *testing.T) {
	busybox := testutil.Busybox(t)
	file := filepath.Join(t.TempDir(), "profile")
	r := sandbox{flags: []string{"-profile", file}}.run(t, busybox, "sh", "-c", `echo x | wc -c; x=$(echo y)`)
	r.want(t, 0, "2\n")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	kinds := map[string]bool{}
	for _, s := range p.Sample {
		group := s.Location[len(s.Location)-1].Line[0].Function.Name
		counts[group] += uint64(s.Value[0])
		kinds[s.Location[0].Line[0].Function.Name] = true
	}
	if r.report == nil || counts["syscalls"] != r.report.Syscalls || counts["faults"] != r.report.Faults || counts["guest"] < counts["syscalls"]+counts["faults"] {
		t.Errorf("the profile has %v, the report %+v", counts, r.report)
	}
	for _, kind := range []string{"write", "execve", "until system call", "until page fault", "write zero", "write copy"} {
		if !kinds[kind] {
			t.Errorf("no sample of %q in %v", kind, kinds)
		}
	}
}

func TestProfileTable(t *testing.T) {
	r := sandbox{flags: []string{"-profile", "-"}}.run(t, testutil.Busybox(t), "sh", "-c", "y=$(echo y); echo x")
	r.want(t, 0, "x\n")
	for _, part := range []string{"count", "guest\n", "syscalls\n", "faults\n", " write\n", "[heap]\n", "busybox\n"} {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("stderr lacks %q:\n%s", part, r.stderr)
		}
	}
}

func TestProfileNowhere(t *testing.T) {
	testutil.RequireKVM(t)
	r := sandbox{}.start(t, []string{"-profile", filepath.Join(t.TempDir(), "no/such"), testutil.Busybox(t), "true"})
	r.want(t, 125, "")
	r.oneLine(t, "-profile")
}
