package snapfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/snaptest"
)

// byTheBook writes a file of package snaptest, beside the parent that it may need.
func byTheBook(t testing.TB, dir string, f *snaptest.File) (path string) {
	t.Helper()
	path = filepath.Join(dir, "hostile")
	for name, b := range map[string][]byte{path: f.Bytes(), filepath.Join(dir, "packed"): snaptest.Good("packed").Bytes()} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// wantByTheBook is what a page of a good file holds.
func wantByTheBook(kind string, gpa addr.GPA) []byte {
	region, n := 0, uint64(gpa-1<<20)/addr.PageSize
	if gpa >= 1<<30 {
		region, n = 1, uint64(gpa-1<<30)/addr.PageSize
	}
	if region == 0 && (n >= 2 && n < 5 || n == 9 || n == 10) || region == 1 && n == 0 {
		return snaptest.Content(region, n)
	}
	return zeroPage[:]
}

// TestGoodFilesByTheBook: files that are made by the page on the format alone are read as
// they were meant.
func TestGoodFilesByTheBook(t *testing.T) {
	for _, kind := range snaptest.Kinds {
		f := mustOpen(t, byTheBook(t, t.TempDir(), snaptest.Good(kind)))
		if err := f.Verify(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if f.ID() != ID(snaptest.Good(kind).ID()) || string(f.State()) != "state" || f.Regions()[1] != (Region{"rom", 1 << 30, 8 * addr.PageSize, 2 << 20, true}) {
			t.Errorf("%s: %v, %q, %v", kind, f.ID(), f.State(), f.Regions())
		}
		p := make([]byte, addr.PageSize)
		for _, r := range f.Regions() {
			for n := range r.nPages() {
				if err := f.ReadPages(t.Context(), p, r.gpaOf(n)); err != nil || !bytes.Equal(p, wantByTheBook(kind, r.gpaOf(n))) {
					t.Errorf("%s: page %d of %v: %v, %x", kind, n, r, err, p[:8])
				}
			}
		}
	}
}

// taken is what became of a file that somebody was to use.
type taken struct {
	open, verify, restore error
	wrong                 string // what was given out, and is not so
	took                  uint64 // bytes of memory
}

func (x taken) errs() []error { return []error{x.open, x.verify, x.restore} }

// take uses a file in every way. Its data may be anything that is in it; but every way
// gives the same.
func take(path string) (x taken) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	defer func() {
		runtime.ReadMemStats(&after)
		x.took = after.TotalAlloc - before.TotalAlloc
	}()
	f, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}, CacheBytes: 1 << 16})
	if x.open = err; err != nil {
		return x
	}
	defer f.Close()
	x.verify = f.Verify(context.Background(), nil)
	m := new(memory)
	x.restore = f.Restore(context.Background(), m, RestoreOptions{Workers: 2})
	if (x.verify == nil) != (x.restore == nil) {
		x.wrong = fmt.Sprintf("Verify says %v, Restore %v", x.verify, x.restore)
	}
	p := make([]byte, addr.PageSize)
	for _, r := range f.Regions() {
		for n := range min(r.nPages(), 32) {
			err := f.ReadPages(context.Background(), p, r.gpaOf(n))
			switch want := m.pages[r.gpaOf(n)]; {
			case err != nil && (x.verify == nil || !isZero(p)):
				x.wrong = fmt.Sprintf("page %d of %v: %v, %x; Verify says %v", n, r, err, p[:8], x.verify)
			case err == nil && x.restore == nil && !bytes.Equal(p, orZeroes(want)):
				x.wrong = fmt.Sprintf("page %d of %v: %x, and restored %x", n, r, p[:8], orZeroes(want)[:8])
			}
		}
	}
	_ = f.Info()
	return x
}

func orZeroes(p []byte) []byte {
	if p == nil {
		return zeroPage[:]
	}
	return p
}

// nameless returns the first error that has no name.
func (x taken) nameless() error {
	for _, err := range x.errs() {
		if err != nil && !isNamed(err) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrCodec) {
			return err
		}
	}
	return nil
}

// mostMemory is what a file of a few pages may take: buffers of workers among it, which
// are of a chunk each.
const mostMemory = 64 << 20

func (x taken) check(t *testing.T, what string) {
	t.Helper()
	if err := x.nameless(); err != nil {
		t.Errorf("%s: %v has no name", what, err)
	}
	if x.wrong != "" {
		t.Errorf("%s: %s", what, x.wrong)
	}
	if x.took > mostMemory {
		t.Errorf("%s: %d bytes of memory", what, x.took)
	}
}

// TestNonsenseIsRefused: a file whose checksums are right, and which says what no file
// says, is refused by name, in every way of using it; what of its data is given out is
// what every other way gives.
func TestNonsenseIsRefused(t *testing.T) {
	applied := map[string]int{}
	for _, kind := range snaptest.Kinds {
		dir := t.TempDir()
		for _, wrong := range snaptest.Nonsense {
			f := snaptest.Good(kind)
			if !wrong.Spoil(f) {
				continue
			}
			applied[wrong.Name]++
			x := take(byTheBook(t, dir, f))
			x.check(t, kind+": "+wrong.Name)
			if x.open == nil && x.verify == nil {
				t.Errorf("%s: %s: nobody refuses it", kind, wrong.Name)
			}
		}
	}
	for _, wrong := range snaptest.Nonsense {
		if applied[wrong.Name] == 0 {
			t.Errorf("%s was never tried", wrong.Name)
		}
	}
}

// TestNonsenseTogether: as much of it in one file as chance wants.
func TestNonsenseTogether(t *testing.T) {
	rounds := 500
	if *soak {
		rounds = 150_000
	}
	rnd := rand.New(rand.NewPCG(6, 6))
	dir := t.TempDir()
	opened := 0
	for range rounds {
		kind := snaptest.Kinds[rnd.IntN(len(snaptest.Kinds))]
		f, what := snaptest.Good(kind), kind
		for range 2 + rnd.IntN(3) {
			wrong := snaptest.Nonsense[rnd.IntN(len(snaptest.Nonsense))]
			if spoil(f, wrong) {
				what += ", " + wrong.Name
			}
		}
		if !canBeLaidOut(f) {
			continue
		}
		x := take(byTheBook(t, dir, f))
		x.check(t, what)
		if x.open == nil {
			opened++
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of %d could be opened", opened, rounds)
}

// spoil spoils a file that may have lost what is to be spoiled.
func spoil(f *snaptest.File, wrong snaptest.Wrong) (done bool) {
	defer func() { _ = recover() }()
	return wrong.Spoil(f)
}

// canBeLaidOut reports whether changes that have nothing to change any more leave a file.
func canBeLaidOut(f *snaptest.File) (done bool) {
	defer func() { _ = recover() }()
	f.Bytes()
	return true
}
