//go:build linux && amd64

package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// overlaid returns a namespace whose root has files in its tmp.
func overlaid(t *testing.T, limit int64, files map[string]string) *Namespace {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, "tmp", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := OpenTree(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return &Namespace{Tree: tree, Tmp: NewTmpfs(limit)}
}

// Who are first to write to a file of the host's, at once, all write to the same one, and
// what each appends is there.
func TestOverlayTakesAFileOnce(t *testing.T) {
	ns := overlaid(t, 8<<20, map[string]string{"a/b/f": "head\n"})
	v := &Viewer{Cwd: "/"}
	const writers, lines = 8, 60
	padding := strings.Repeat(".", 8<<10) // so that others wait meanwhile
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			o, err := ns.Open(v, "/tmp/a/b/f", unix.O_WRONLY|unix.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer o.Unref()
			for j := range lines {
				if _, err := o.Write(fmt.Appendf(nil, "line %d of %d%s\n", j, i, padding)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	o, err := ns.Open(v, "/tmp/a/b/f", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Unref()
	b := make([]byte, 8<<20)
	n, err := o.Read(b)
	got := string(b[:n])
	if err != nil || !strings.HasPrefix(got, "head\n") || strings.Count(got, "\n") != writers*lines+1 {
		t.Errorf("%v: %d lines, want %d", err, strings.Count(got, "\n"), writers*lines+1)
	}
	for i := range writers {
		for j := range lines {
			if want := fmt.Sprintf("\nline %d of %d.", j, i); !strings.Contains(got, want) {
				t.Fatalf("%q is lost", want)
			}
		}
	}
}

// A file that does not fit leaves nothing behind, and stays readable.
func TestOverlayGivesBackOnFailure(t *testing.T) {
	ns := overlaid(t, 2*chunkSize, map[string]string{"large": strings.Repeat("x", 5*chunkSize)})
	v := &Viewer{Cwd: "/"}
	before := ns.Tmp.room()
	for range 3 {
		if o, err := ns.Open(v, "/tmp/large", unix.O_RDWR, 0); err != unix.ENOSPC {
			t.Errorf("%v, want ENOSPC", err)
			if err == nil {
				o.Unref()
			}
		}
	}
	if err := ns.Rename(v, "/tmp/large", "/tmp/other", 0); err != unix.ENOSPC {
		t.Errorf("rename: %v, want ENOSPC", err)
	}
	if after := ns.Tmp.room(); after != before {
		t.Errorf("%+v is left of %+v", after, before)
	}
	if st, err := ns.Stat(v, "/tmp/large", 0); err != nil || st.Size != 5*chunkSize {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
	if _, err := ns.Stat(v, "/tmp/other", 0); err != unix.ENOENT {
		t.Errorf("the new name: %v, want ENOENT", err)
	}
	// Cut, it fits.
	o, err := ns.Open(v, "/tmp/large", unix.O_RDWR|unix.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	o.Unref()
	if st, err := ns.Stat(v, "/tmp/large", 0); err != nil || st.Size != 0 {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
}

// Making and removing files that the host has never had leaves no trace in memory.
func TestOverlayHidesOnlyWhatIsThere(t *testing.T) {
	ns := overlaid(t, 1<<20, map[string]string{"f": ""})
	v := &Viewer{Cwd: "/"}
	before := ns.Tmp.room()
	for i := range 100 {
		name := fmt.Sprintf("/tmp/own%d", i)
		o, err := ns.Open(v, name, unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		o.Unref()
		if err := ns.Remove(v, name, 0); err != nil {
			t.Fatal(err)
		}
	}
	if after := ns.Tmp.room(); after != before || len(ns.Tmp.root.hidden) != 0 {
		t.Errorf("%+v is left of %+v; %d names hidden", after, before, len(ns.Tmp.root.hidden))
	}
	if err := ns.Remove(v, "/tmp/f", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Stat(v, "/tmp/f", 0); err != unix.ENOENT {
		t.Errorf("removed: %v, want ENOENT", err)
	}
}

// Ends of a pipe with a name that come and go leave none counted.
func TestFIFOEndsAreGivenBack(t *testing.T) {
	ns := overlaid(t, 1<<20, map[string]string{"f": ""})
	v := &Viewer{Cwd: "/"}
	if err := ns.Mknod(v, "/tmp/p", unix.S_IFIFO|0o600); err != nil {
		t.Fatal(err)
	}
	before := openPipes.Load()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			access := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR}[i%3]
			for range 200 {
				o, err := ns.Open(v, "/tmp/p", access|unix.O_NONBLOCK, 0)
				switch {
				case err == unix.ENXIO && access == unix.O_WRONLY:
					continue
				case err != nil:
					t.Error(err)
					return
				}
				if o.CanWrite() {
					_, _ = o.Write([]byte("x"))
				}
				o.Unref()
			}
		})
	}
	wg.Wait()
	if after := openPipes.Load(); after != before {
		t.Errorf("%d pipes are open, there were %d", after, before)
	}
}

// Who opens an end while somebody waits with the other one has met him, even if he is
// gone before that is looked at; and who came later than all of them has not.
func TestFIFOPeerThatIsGoneWasMet(t *testing.T) {
	ns := overlaid(t, 1<<20, map[string]string{"f": ""})
	v := &Viewer{Cwd: "/"}
	if err := ns.Mknod(v, "/tmp/p", unix.S_IFIFO|0o600); err != nil {
		t.Fatal(err)
	}
	open := func(access int) *Open {
		o, err := ns.Open(v, "/tmp/p", access, 0)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, ends := range [][2]int{{unix.O_RDONLY, unix.O_WRONLY}, {unix.O_WRONLY, unix.O_RDONLY}} {
		first := open(ends[0])
		if err := first.Peer(); err != unix.EAGAIN {
			t.Errorf("alone: %v, want EAGAIN", err)
		}
		second := open(ends[1])
		if err := first.Peer(); err != nil {
			t.Errorf("met: %v", err)
		}
		first.Unref()
		if err := second.Peer(); err != nil {
			t.Errorf("met, and gone: %v", err)
		}
		if ends[1] == unix.O_RDONLY && second.Ready()&unix.POLLHUP == 0 {
			t.Error("the writer has gone, and nobody hangs up")
		}
		third := open(ends[1])
		if err := third.Peer(); err != unix.EAGAIN {
			t.Errorf("come later: %v, want EAGAIN", err)
		}
		third.Unref()
		second.Unref()
	}
}
