package snapfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// chain writes a full file and increments to it, named 0, 1, 2….
func chain(t testing.TB, dir string, n int) *fakeImage {
	t.Helper()
	now := newFakeImage(testRegions...)
	var parent *File
	for i := range n {
		img := newFakeImage(testRegions...)
		img.put(addr.GPA(i%48*addr.PageSize), uint64(i)+1)
		path := filepath.Join(dir, fmt.Sprint(i))
		mustWrite(t, path, img, Options{Parent: parent, Sync: SyncNone})
		parent = mustOpen(t, path)
		now = img.over(now)
	}
	return now
}

func openErr(path string, o OpenOptions) error {
	f, err := Open(path, o)
	if err == nil {
		f.Close()
	}
	return err
}

func TestParentGoneOrChanged(t *testing.T) {
	dir := t.TempDir()
	want := chain(t, dir, 3)
	child := filepath.Join(dir, "2")
	checkSame(t, mustOpen(t, child), want)

	middle := filepath.Join(dir, "1")
	aside := filepath.Join(dir, "aside")
	if err := os.Rename(middle, aside); err != nil {
		t.Fatal(err)
	}
	if err := openErr(child, OpenOptions{}); !errors.Is(err, ErrParent) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a parent that is gone: %v", err)
	}
	find := func(from, recorded string) (string, error) {
		if recorded == "1" && from == child {
			return aside, nil
		}
		return filepath.Join(dir, recorded), nil
	}
	f, err := Open(child, OpenOptions{FindParent: find})
	if err != nil {
		t.Fatalf("a parent that was found elsewhere: %v", err)
	}
	checkSame(t, f, want)
	f.Close()
	no := errors.New("no")
	if err := openErr(child, OpenOptions{FindParent: func(string, string) (string, error) { return "", no }}); !errors.Is(err, ErrParent) || !errors.Is(err, no) {
		t.Errorf("nobody finds the parent: %v", err)
	}

	// The same image, written again, is another file.
	img := newFakeImage(testRegions...)
	img.put(addr.PageSize, 2)
	mustWrite(t, middle, img, Options{Parent: mustOpen(t, filepath.Join(dir, "0"))})
	if err := openErr(child, OpenOptions{}); !errors.Is(err, ErrParent) {
		t.Errorf("a parent that was written again: %v", err)
	}
	if err := os.WriteFile(middle, []byte("something else entirely"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openErr(child, OpenOptions{}); !errors.Is(err, ErrParent) || !errors.Is(err, ErrForeign) {
		t.Errorf("a parent that is no snapshot: %v", err)
	}
	if err := os.Remove(middle); err != nil {
		t.Fatal(err)
	}
	makePipe(t, middle)
	if err := openErr(child, OpenOptions{}); !errors.Is(err, ErrParent) || !errors.Is(err, ErrForeign) {
		t.Errorf("a parent that is a pipe: %v", err)
	}
}

// TestCycle makes a file its own parent, and two each other's.
func TestCycle(t *testing.T) {
	dir := t.TempDir()
	chain(t, dir, 3)
	for _, link := range []struct{ gone, to string }{{"0", "1"}, {"1", "2"}, {"0", "2"}} {
		file := filepath.Join(dir, link.gone)
		if err := os.Rename(file, file+".aside"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link.to, file); err != nil {
			t.Fatal(err)
		}
		if err := openErr(filepath.Join(dir, "2"), OpenOptions{}); !errors.Is(err, ErrParent) {
			t.Errorf("%s is %s: %v", link.gone, link.to, err)
		}
		if err := os.Rename(file+".aside", file); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChainsEnd(t *testing.T) {
	dir := t.TempDir()
	want := chain(t, dir, MaxChain)
	last := filepath.Join(dir, fmt.Sprint(MaxChain-1))
	f := mustOpen(t, last)
	checkSame(t, f, want)
	if _, err := Write(t.Context(), filepath.Join(dir, "more"), newFakeImage(testRegions...), Options{Parent: f}); !errors.Is(err, ErrParent) || !errors.Is(err, ErrLimit) {
		t.Errorf("a chain of %d files was written: %v", MaxChain+1, err)
	}
	// One that somebody else has made.
	forged := &File{path: f.path, src: f.src, h: f.h, id: f.id, tables: f.tables, cache: f.cache}
	mustWrite(t, filepath.Join(dir, "more"), newFakeImage(testRegions...), Options{Parent: forged, Sync: SyncNone})
	if err := openErr(filepath.Join(dir, "more"), OpenOptions{}); !errors.Is(err, ErrParent) || !errors.Is(err, ErrLimit) {
		t.Errorf("a chain of %d files was opened: %v", MaxChain+1, err)
	}
}

func TestParentsAreNotReplaced(t *testing.T) {
	dir := t.TempDir()
	chain(t, dir, 3)
	f := mustOpen(t, filepath.Join(dir, "2"))
	for i := range 3 {
		if _, err := Write(t.Context(), filepath.Join(dir, fmt.Sprint(i)), newFakeImage(testRegions...), Options{Parent: f}); !errors.Is(err, ErrParent) {
			t.Errorf("%d was replaced: %v", i, err)
		}
	}
	other := slices.Clone(testRegions)
	other[1].Size *= 2
	for _, regions := range [][]Region{other, testRegions[:2]} {
		if _, err := Write(t.Context(), filepath.Join(dir, "x"), newFakeImage(regions...), Options{Parent: f}); !errors.Is(err, ErrRegions) {
			t.Errorf("other regions: %v", err)
		}
	}
	f.Close()
	if _, err := Write(t.Context(), filepath.Join(dir, "x"), newFakeImage(testRegions...), Options{Parent: f}); !errors.Is(err, ErrClosed) {
		t.Errorf("a parent that is closed: %v", err)
	}
	if got := filesIn(t, dir); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("left: %q", got)
	}
}

// TestParentsElsewhere: a path that leads out of the directory is recorded, and
// followed if the opener says so.
func TestParentsElsewhere(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	chain(t, dir, 1)
	child := filepath.Join(other, "child")
	mustWrite(t, child, newFakeImage(testRegions...), Options{Parent: mustOpen(t, filepath.Join(dir, "0"))})
	if err := openErr(child, OpenOptions{}); !errors.Is(err, ErrParent) {
		t.Errorf("a file chose what is opened: %v", err)
	}
	follow := OpenOptions{FindParent: func(_, recorded string) (string, error) { return recorded, nil }}
	if err := openErr(child, follow); err != nil {
		t.Error(err)
	}
	// Chains can be moved as a whole, and lie in directories below.
	if err := os.Mkdir(filepath.Join(dir, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "0"), filepath.Join(dir, "base", "0")); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(dir, "child"), newFakeImage(testRegions...), Options{Parent: mustOpen(t, filepath.Join(dir, "base", "0"))})
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	defer removeAll(t, dir+".moved")
	if err := openErr(filepath.Join(dir+".moved", "child"), OpenOptions{}); err != nil {
		t.Error(err)
	}
}
