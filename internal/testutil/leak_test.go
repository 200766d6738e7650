package testutil

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestStockFindsGoroutine(t *testing.T) {
	before := takeStock()
	started, stop := make(chan struct{}), make(chan struct{})
	done := Go(func() {
		close(started)
		<-stop
	})
	<-started
	if leaks := takeStock().since(before); len(leaks) != 1 || !strings.Contains(leaks[0], "TestStockFindsGoroutine") {
		t.Errorf("one goroutine is left: got %q", leaks)
	}
	close(stop)
	<-done
	if leaks := settle(before); len(leaks) != 0 {
		t.Errorf("nothing is left: got %q", leaks)
	}
}

func TestStockFindsDescriptor(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("lists descriptors by /proc; to run it use Linux")
	}
	before := takeStock()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if leaks := takeStock().since(before); len(leaks) != 1 || !strings.Contains(leaks[0], os.DevNull) {
		t.Errorf("one descriptor is left: got %q", leaks)
	}
	f.Close()
	if leaks := settle(before); len(leaks) != 0 {
		t.Errorf("nothing is left: got %q", leaks)
	}
}
