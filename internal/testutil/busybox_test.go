package testutil

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBusyboxIsStatic(t *testing.T) {
	path := Busybox(t)
	if err := checkStatic(path); err != nil {
		t.Error(err)
	}
}

func TestBusyboxFromEnvironmentMustDo(t *testing.T) {
	script := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(busyboxEnv, script)
	v := &verdict{}
	Busybox(v)
	if v.kind != "fail" || !strings.Contains(v.text, busyboxEnv) {
		t.Errorf("got %q (%s), want a failure that names %s", v.kind, v.text, busyboxEnv)
	}
}

// TestFetchBusybox needs the network and a package index, so it runs only
// where busybox is required, into a cache directory of its own.
func TestFetchBusybox(t *testing.T) {
	if !strings.Contains(os.Getenv(requireEnv), string(needBusybox)) {
		t.Skipf("downloads a package; to run it set %s=busybox", requireEnv)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	path, err := fetchBusybox()
	if err != nil && strings.Contains(err.Error(), "apt-get") {
		t.Skipf("%v; to run it give apt-get a mirror and its index (apt-get update)", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := fetchBusybox()
	if err != nil || again != path {
		t.Errorf("second fetch: %q, %v, want %q from the cache", again, err, path)
	}
}
