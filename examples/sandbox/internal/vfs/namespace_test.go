//go:build linux && amd64

package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newTestNamespace(t *testing.T) (*Namespace, *Viewer) {
	t.Helper()
	dir := t.TempDir()
	for name, target := range map[string]string{"out": "../../../etc/passwd", "abs": "/d/f", "dev": "/dev/null", "self": "/proc/x"} {
		if err := os.Symlink(target, filepath.Join(dir, "l-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d/f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	proc := map[string]*Entry{
		"":  {Mode: unix.S_IFDIR | 0o555, Names: func() []Name { return nil }},
		"x": {Mode: unix.S_IFREG | 0o444, Content: func() []byte { return []byte("made up") }},
		"l": {Mode: unix.S_IFLNK | 0o777, Target: func() string { return "/d" }},
	}
	return &Namespace{Tree: tree, Tmp: NewTmpfs(1 << 20), Devices: Devices()}, &Viewer{Cwd: "/", Proc: func(rel string) (*Entry, error) {
		if e := proc[rel]; e != nil {
			return e, nil
		}
		return nil, unix.ENOENT
	}}
}

func TestOpen(t *testing.T) {
	ns, v := newTestNamespace(t)
	tests := []struct {
		path  string
		flags int
		want  string
		err   error
	}{
		{"/d/f", 0, "content", nil},
		{"d/../d/./f", 0, "content", nil},
		{"/l-abs", 0, "content", nil},
		{"/l-abs", unix.O_NOFOLLOW, "", unix.ELOOP},
		{"/l-out", 0, "", unix.ENOENT},
		{"/l-dev", 0, "", nil},
		{"/l-self", 0, "made up", nil},
		{"/proc/l/f", 0, "content", nil},
		{"/proc/x/", 0, "", unix.ENOTDIR},
		{"/proc/x/y", 0, "", unix.ENOTDIR},
		{"/d/f/", 0, "", unix.ENOTDIR},
		{"/d/f", unix.O_WRONLY, "", unix.EROFS},
		{"/d", unix.O_RDWR, "", unix.EISDIR},
		{"/d/f", unix.O_DIRECTORY, "", unix.ENOTDIR},
		{"/d/f", unix.O_CREAT | unix.O_EXCL, "", unix.EEXIST},
		{"/d/new", unix.O_CREAT | unix.O_WRONLY, "", unix.EROFS},
		{"/nosuch/new", unix.O_CREAT | unix.O_WRONLY, "", unix.ENOENT},
		{"/proc/x", unix.O_WRONLY, "", unix.EACCES},
		{"", 0, "", unix.ENOENT},
		{strings.Repeat("/x", 3000), 0, "", unix.ENAMETOOLONG},
		{"/" + strings.Repeat("x", 300), 0, "", unix.ENAMETOOLONG},
	}
	for _, tt := range tests {
		o, err := ns.Open(v, tt.path, tt.flags, 0o644)
		if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("Open(%.40q, %#x): %v, want %v", tt.path, tt.flags, err, tt.err)
		}
		if err != nil {
			continue
		}
		buf := make([]byte, 100)
		n, err := o.Read(buf)
		if string(buf[:n]) != tt.want || err != nil {
			t.Errorf("%q reads %q, %v; want %q", tt.path, buf[:n], err, tt.want)
		}
		o.Unref()
	}
}

func TestTmp(t *testing.T) {
	ns, v := newTestNamespace(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ns.Mkdir(v, "/tmp/d", 0o755))
	o, err := ns.Open(v, "/tmp/d/f", unix.O_CREAT|unix.O_RDWR, 0o644)
	must(err)
	for _, off := range []int64{0, 70000, 10} {
		_, err := o.Seek(off, unix.SEEK_SET)
		must(err)
		_, err = o.Write([]byte("abc"))
		must(err)
	}
	buf := make([]byte, 80000)
	n, err := o.File.ReadAt(buf, 0)
	if n != 70003 || err != nil || string(buf[:14]) != "abc\x00\x00\x00\x00\x00\x00\x00abc\x00" || string(buf[70000:70003]) != "abc" {
		t.Errorf("read %d, %v, %q", n, err, buf[:14])
	}
	must(o.Truncate(5))
	must(o.Truncate(20))
	if n, _ := o.File.ReadAt(buf, 0); n != 20 || buf[10] != 0 {
		t.Errorf("what was cut off came back: %q", buf[:n])
	}
	must(ns.Symlink(v, "d/f", "/tmp/l"))
	if target, err := ns.Readlink(v, "/tmp/l"); target != "d/f" || err != nil {
		t.Errorf("Readlink: %q, %v", target, err)
	}
	if st, err := ns.Stat(v, "/tmp/l", 0); err != nil || st.Size != 20 {
		t.Errorf("Stat through a link: %d, %v", st.Size, err)
	}
	for _, tt := range []struct{ from, to string }{{"/tmp/d", "/tmp/d/x"}, {"/tmp/nosuch", "/tmp/y"}, {"/d/f", "/tmp/y"}, {"/tmp/d", "/d/y"}} {
		if err := ns.Rename(v, tt.from, tt.to, 0); err == nil {
			t.Errorf("Rename(%q, %q) succeeded", tt.from, tt.to)
		}
	}
	if err := ns.Remove(v, "/tmp/d", unix.AT_REMOVEDIR); err != unix.ENOTEMPTY {
		t.Errorf("rmdir of a full directory: %v", err)
	}
	must(ns.Rename(v, "/tmp/d/f", "/tmp/g", 0))
	must(ns.Remove(v, "/tmp/d", unix.AT_REMOVEDIR))
	must(ns.Remove(v, "/tmp/g", 0))
	must(ns.Remove(v, "/tmp/l", 0))
	if ns.Tmp.used == 0 {
		t.Error("an open file has no bytes after it was removed")
	}
	o.Unref()
	if ns.Tmp.used != 0 || ns.Tmp.nodes != 1 {
		t.Errorf("%d bytes and %d nodes stay behind", ns.Tmp.used, ns.Tmp.nodes)
	}
}

func TestTmpIsBounded(t *testing.T) {
	ns, v := newTestNamespace(t)
	o, err := ns.Open(v, "/tmp/f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Unref()
	total := 0
	for {
		n, err := o.Write(make([]byte, 100000))
		total += n
		if err == unix.ENOSPC {
			break
		}
		if err != nil || total > 2<<20 {
			t.Fatal(total, err)
		}
	}
	if total != 1<<20 {
		t.Errorf("%d bytes fitted, want 1 MiB", total)
	}
	if _, err := o.File.WriteAt([]byte{1}, 1<<62); err != unix.EFBIG {
		t.Errorf("a write far out: %v", err)
	}
}

func TestSeek(t *testing.T) {
	ns, v := newTestNamespace(t)
	o, err := ns.Open(v, "/d/f", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Unref()
	for _, tt := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{3, unix.SEEK_SET, 3, nil}, {2, unix.SEEK_CUR, 5, nil}, {-7, unix.SEEK_END, 0, nil},
		{-1, unix.SEEK_SET, 0, unix.EINVAL}, {1<<63 - 1, unix.SEEK_END, 0, unix.EINVAL}, {0, 9, 0, unix.EINVAL},
		{2, unix.SEEK_DATA, 2, nil}, {2, unix.SEEK_HOLE, 7, nil}, {7, unix.SEEK_DATA, 0, unix.ENXIO},
	} {
		if got, err := o.Seek(tt.off, tt.whence); got != tt.want || err != tt.err {
			t.Errorf("Seek(%d, %d) = %d, %v; want %d, %v", tt.off, tt.whence, got, err, tt.want, tt.err)
		}
	}
	r, w, err := NewPipe(0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Unref()
	defer r.Unref()
	if _, err := r.Seek(0, unix.SEEK_CUR); err != unix.ESPIPE {
		t.Errorf("a pipe: %v", err)
	}
}

// everything is who gets everything.
func everything(p []byte) (int, error) { return len(p), nil }

func TestReadDir(t *testing.T) {
	ns, v := newTestNamespace(t)
	for dir, name := range map[string]string{"/d": "f", "/dev": "null"} {
		o, err := ns.Open(v, dir, unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.ReadDir(make([]byte, 8), everything); err != unix.EINVAL {
			t.Errorf("%s into 8 bytes: %v", dir, err)
		}
		for range 2 { // again after a rewind
			var all []byte
			for {
				buf := make([]byte, 64)
				n, err := o.ReadDir(buf, everything)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				all = append(all, buf[:n]...)
			}
			_, _, names := unix.ParseDirent(all, -1, nil)
			if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+name+" ") {
				t.Errorf("%s lists %q, want %q among them", dir, names, name)
			}
			if _, err := o.Seek(0, unix.SEEK_SET); err != nil {
				t.Fatal(err)
			}
		}
		o.Unref()
	}
}

func TestRootIsCanonical(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	tree, err := OpenTree(link)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for host, want := range map[string]string{dir: "/", dir + "/x": "/x", dir + "x": ""} {
		if got, ok := tree.GuestPath(host); ok != (want != "") || (ok && got != want) {
			t.Errorf("GuestPath(%q) = %q, %v", host, got, ok)
		}
	}
}
