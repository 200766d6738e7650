//go:build amd64

package guestmem

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const helperDir = "testdata/oracle"

// TestOracleHelperIsItsSource holds that helper.bin was built from helper.c as
// it is now; and where there is a compiler, that it can be, and that what this
// gives does the same.
func TestOracleHelperIsItsSource(t *testing.T) {
	var sums bytes.Buffer
	for _, name := range []string{"helper.c", "helper.bin"} {
		b, err := os.ReadFile(filepath.Join(helperDir, name))
		mustDo(t, err)
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(b), name)
	}
	noted, err := os.ReadFile(filepath.Join(helperDir, "helper.sum"))
	mustDo(t, err)
	if sums.String() != string(noted) {
		t.Fatalf("helper.sum says\n%sand the files are\n%s: run %s/build.sh", noted, &sums, helperDir)
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("%v: helper.bin is taken as it is", err)
	}
	built := buildHelper(t)
	if bytes.Equal(built, helperBytes(t)) {
		return
	}
	t.Log("this compiler gives other bytes: trying what they do")
	path := helperFile(t, built)
	for i, win := range hostWindows {
		k := newConfiguredHost(t, path, win)
		if k.unfit != "" {
			continue
		}
		s := sequence{seed: uint64(1000 + i), window: win, exclusions: activeExclusions(t)}
		if ops, diff := s.generate(k, sequenceOps); diff != "" {
			t.Errorf("window %s, operation %d: %s", win.name, len(ops)-1, diff)
		}
	}
}

// buildHelper runs the command in helper.c's head.
func buildHelper(t *testing.T) []byte {
	source, err := os.ReadFile(filepath.Join(helperDir, "helper.c"))
	mustDo(t, err)
	out := filepath.Join(t.TempDir(), "helper")
	for line := range strings.Lines(string(source)) {
		args := strings.Fields(strings.TrimPrefix(line, "//"))
		if len(args) < 2 || args[0] != "gcc" {
			continue
		}
		for i, a := range args {
			if a == "helper.bin" {
				args[i] = out
			}
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = helperDir
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
		b, err := os.ReadFile(out)
		mustDo(t, err)
		return b
	}
	t.Fatal("helper.c does not say how it is built")
	return nil
}

// TestOracleWithoutPagemapScan runs as on a kernel before 6.7.
func TestOracleWithoutPagemapScan(t *testing.T) {
	path := helperFile(t, helperBytes(t))
	for i, win := range hostWindows[:2] {
		k := newConfiguredHost(t, path, win)
		k.noScan = true
		s := sequence{seed: uint64(2000 + i), window: win, exclusions: activeExclusions(t)}
		if ops, diff := s.generate(k, sequenceOps); diff != "" {
			t.Errorf("window %s, operation %d: %s", win.name, len(ops)-1, diff)
		}
	}
}
