//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

var soak = flag.Bool("soak", false, "run a hundred times as much of the tests that take samples")

// fileImage is the memory of a file, to be written to another one.
type fileImage struct{ *snapfile.File }

func (i fileImage) Data(base addr.GPA, yield func(addr.GPA, uint64) bool) error {
	for _, r := range i.Regions() {
		if r.Base == base {
			yield(base, r.Size/addr.PageSize)
		}
	}
	return nil
}

func (i fileImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	return len(p), i.ReadPages(context.Background(), p, gpa)
}

// rewrite writes the memory of a file to another one, with another state.
func rewrite(t *testing.T, from, to string, o snapfile.Options, edit func(state []byte) []byte) {
	t.Helper()
	f, err := openFile(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o.Sync, o.State = snapfile.SyncNone, edit(f.State())
	if _, err := snapfile.Write(context.Background(), to, fileImage{f}, o); err != nil {
		t.Fatal(err)
	}
}

func same(state []byte) []byte { return state }

// refused runs every command on a file that is not to be used, and wants each to say
// why, and nothing that looks like a success.
func refused(t *testing.T, file, why string, commands ...[]string) {
	t.Helper()
	for _, args := range commands {
		got := within(append(args, file)...)
		if got.status != statusFailed || got.stdout != "" || !strings.Contains(got.stderr, why) {
			t.Errorf("%q of %s: want %q: %v", args, file, why, got)
		}
	}
}

var (
	readers  = [][]string{{"inspect"}, {"verify"}}
	runners  = [][]string{{"-restore"}, {"-lazy", "-restore"}, {"-clones", "2", "-restore"}}
	commands = append(readers, runners...)
)

// TestUnusableFiles: what is no snapshot file, or of another program, or needs what
// is not there, is refused by name before any guest runs.
func TestUnusableFiles(t *testing.T) {
	file := snapshotOf(t, "-increments", "1")
	dir := t.TempDir()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		write(t, p, b)
		return p
	}
	refused(t, path("text.snap", []byte(strings.Repeat("no snapshot at all ", 1000))), snapfile.ErrForeign.Error(), commands...)
	refused(t, path("empty.snap", nil), "snapshot file", commands...)
	refused(t, filepath.Join(dir, "none.snap"), "no such file", commands...)
	refused(t, dir, snapfile.ErrForeign.Error(), commands...)
	for _, n := range []int{1, 100, 4096, len(whole) / 2, len(whole) - 1} {
		refused(t, path("cut.snap", whole[:n]), "snapshot file", commands...)
	}
	refused(t, path("long.snap", append(whole[:len(whole):len(whole)], 0)), snapfile.ErrDamaged.Error(), commands...)
	newer := append([]byte(nil), whole...)
	newer[8]++
	refused(t, path("newer.snap", newer), "snapshot file", commands...) // ErrNewer has a checksum of its own

	// The state is not a built-in guest's, or cannot be loaded here.
	other := filepath.Join(dir, "other.snap")
	rewrite(t, file, other, snapfile.Options{}, func([]byte) []byte { return []byte(`{"guest":"somebody else's"}`) })
	mustRun(t, "ok, 1 file", "verify", other)
	refused(t, other, machine.ErrForeignState.Error(), runners...)
	rewrite(t, file, other, snapfile.Options{}, func([]byte) []byte { return nil })
	refused(t, other, machine.ErrForeignState.Error(), runners...)
	strange := filepath.Join(dir, "strange.snap")
	rewrite(t, file, strange, snapfile.Options{}, func(state []byte) []byte {
		var s machine.Saved
		if err := s.UnmarshalBinary(state); err != nil {
			t.Fatal(err)
		}
		s.State.VCPUs[1].XCR0 |= 1 << 61
		b, err := s.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
	refused(t, strange, kvm.ErrHostState.Error(), runners...)

	// The parent is missing, or another one.
	moved := filepath.Join(t.TempDir(), "moved.snap")
	if err := os.Rename(file, moved); err != nil {
		t.Fatal(err)
	}
	refused(t, file+".1", snapfile.ErrParent.Error(), commands...)
	rewrite(t, moved, file, snapfile.Options{}, same)
	refused(t, file+".1", snapfile.ErrParent.Error(), commands...)
	if err := os.Rename(moved, file); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "\nok\n", "-restore", file+".1")
}

// TestFlippedBits: wherever a bit is flipped, in the file or in its parent, nobody
// restores it; a guest that began to run before the page was read is not given it. It may
// end well only if the byte is nobody's: in a hole, which is not read.
func TestFlippedBits(t *testing.T) {
	samples := 3
	if *soak {
		samples *= 100
	}
	raw := snapshotOf(t, "-increments", "1")
	zstd := snapshotOf(t, "-compress")
	packed := filepath.Join(t.TempDir(), "packed.snap")
	rewrite(t, raw, packed, snapfile.Options{Layout: snapfile.LayoutPacked}, same)
	rng := rand.New(rand.NewPCG(rand.Uint64(), 7))
	for _, x := range []struct{ name, flipped, used string }{
		{"raw", raw, raw}, {"zstd", zstd, zstd}, {"packed", packed, packed},
		{"increment", raw + ".1", raw + ".1"}, {"parent", raw, raw + ".1"},
	} {
		t.Run(x.name, func(t *testing.T) {
			f, err := os.OpenFile(x.flipped, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			size := info.Size()
			at := []int64{0, 60, 4095, size - 1, 4096 + rng.Int64N(100)}
			for range samples {
				at = append(at, rng.Int64N(size), 4096+rng.Int64N(size-4096))
			}
			for _, i := range at {
				bit := byte(1) << rng.IntN(8)
				flip(t, f, i, bit)
				checkFlipped(t, x.used, i, size)
				flip(t, f, i, bit)
			}
			mustRun(t, "ok, ", "verify", x.used)
		})
	}
}

func flip(t *testing.T, f *os.File, at int64, bit byte) {
	t.Helper()
	var b [1]byte
	_, err := f.ReadAt(b[:], at)
	b[0] ^= bit
	_, err2 := f.WriteAt(b[:], at)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
}

func checkFlipped(t *testing.T, file string, at, size int64) {
	t.Helper()
	for _, args := range [][]string{{"verify", file}, {"-restore", file}, {"-restore", file, "-lazy"}, {"-restore", file, "-clones", "2"}} {
		got := within(args...)
		isWrong := strings.Contains(got.stdout, "first error") || strings.Contains(got.stderr, "the guest found")
		isRefused := got.status == statusFailed && !strings.Contains(got.stdout, "ok") && strings.Contains(got.stderr, "snapshot file")
		if args[len(args)-1] == "-lazy" && got.status == statusOK && strings.HasSuffix(got.stdout, "of which wrong: 0\nclones at once                   1\nok\n") {
			isRefused = true // it had no use for that byte
		}
		if isWrong || !isRefused {
			t.Errorf("bit of byte %d of %d, %q: %v", at, size, args, got)
		}
	}
}
