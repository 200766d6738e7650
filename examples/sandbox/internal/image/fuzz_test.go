package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// meter is a file that counts what is asked of it.
type meter struct {
	io.ReaderAt
	calls int
	bytes int64
	most  int
}

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	m.calls++
	m.bytes += int64(len(p))
	m.most = max(m.most, len(p))
	return m.ReaderAt.ReadAt(p, off)
}

// FuzzELF holds Parse against a second reading of the same bytes (naive, below)
// and against its bounds: whatever the file says, a handful of reads, no buffer
// above what the header table and a path may take, an error with a name, and no
// panic. size is what the file claims to be long.
func FuzzELF(f *testing.F) {
	f.Fuzz(func(t *testing.T, file []byte, size int64) {
		if size < 0 || size > int64(len(file)) {
			size = int64(len(file))
		}
		m := &meter{ReaderAt: bytes.NewReader(file)}
		im, err := Parse(m, size)
		if m.calls > 6 || m.most > max(maxHeaders*progSize, maxInterpreter) || m.bytes > 2*maxHeaders*progSize {
			t.Fatalf("%d reads of %d bytes, the largest %d", m.calls, m.bytes, m.most)
		}
		want, ok := naive(file, uint64(size))
		if ok != (err == nil) {
			t.Fatalf("Parse = %+v, %v; want %+v, %v", im, err, want, ok)
		}
		if err != nil {
			mustBeNamed(t, err)
			return
		}
		if len(im.Segments) != len(want.segments) || im.Entry != want.entry || im.Interpreter != want.interpreter || im.PositionIndependent != want.dyn {
			t.Fatalf("Parse = %+v, want %+v", im, want)
		}
		for i, s := range im.Segments {
			if s != want.segments[i] {
				t.Fatalf("segment %d is %+v, want %+v", i, s, want.segments[i])
			}
		}
		if im.PHDR != want.phdr {
			t.Fatalf("the headers are at %#x, want %#x", im.PHDR, want.phdr)
		}
		if start, end := im.Bounds(); start%pageSize != 0 || end%pageSize != 0 || start >= end || end > MaxAddress+pageSize {
			t.Fatalf("Bounds = %#x, %#x", start, end)
		}
	})
}

func mustBeNamed(t *testing.T, err error) {
	t.Helper()
	for _, name := range []error{ErrNotELF, ErrMachine, ErrInterpreter, ErrTruncated, ErrBadSegments} {
		if errors.Is(err, name) {
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
				t.Fatalf("%q is no message", err)
			}
			return
		}
	}
	t.Fatalf("%v has no name", err)
}

// reading is what a file says, as the second reader takes it.
type reading struct {
	segments    []Segment
	entry       uint64
	phdr        uint64
	interpreter string
	dyn         bool
}

// naive reads the file by offsets from the ELF specification, in arithmetic of
// 128 bits by hand: every sum is compared before it is made.
func naive(b []byte, size uint64) (r reading, ok bool) {
	u16 := func(off uint64) uint64 { return uint64(binary.LittleEndian.Uint16(b[off:])) }
	u32 := func(off uint64) uint64 { return uint64(binary.LittleEndian.Uint32(b[off:])) }
	u64 := func(off uint64) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	// fits reports whether n bytes from off on lie below end.
	fits := func(off, n, end uint64) bool { return off <= end && n <= end-off }

	if len(b) < 64 || string(b[:4]) != "\x7fELF" || b[4] != 2 || b[5] != 1 || u16(18) != 62 {
		return r, false
	}
	kind, phoff, phentsize, phnum := u16(16), u64(32), u16(54), u16(56)
	if kind != 2 && kind != 3 || phentsize != 56 || phnum == 0 || phnum > 65536/56 || !fits(phoff, phnum*56, size) {
		return r, false
	}
	r.entry, r.dyn = u64(24), kind == 3
	interp := false
	for i := range phnum {
		at := phoff + i*56
		off, vaddr, filesz, memsz := u64(at+8), u64(at+16), u64(at+32), u64(at+40)
		switch u32(at) {
		case 1: // PT_LOAD
			if filesz == 0 && memsz == 0 {
				continue
			}
			if filesz > memsz || !fits(off, filesz, size) || !fits(vaddr, memsz, MaxAddress) || vaddr%pageSize != off%pageSize {
				return r, false
			}
			if n := len(r.segments); n > 0 && vaddr < r.segments[n-1].Addr+r.segments[n-1].MemSize {
				return r, false
			}
			r.segments = append(r.segments, Segment{Addr: vaddr, Offset: off, FileSize: filesz, MemSize: memsz, Flags: elf.ProgFlag(u32(at + 4))})
		case 3: // PT_INTERP, the first
			if interp {
				continue
			}
			interp = true
			if filesz < 2 || filesz > 4096 || !fits(off, filesz, uint64(len(b))) {
				return r, false
			}
			name := b[off : off+filesz]
			end := bytes.IndexByte(name, 0)
			if end < 1 || name[filesz-1] != 0 {
				return r, false
			}
			r.interpreter = string(name[:end])
		}
	}
	for _, s := range r.segments {
		if s.Offset <= phoff && fits(phoff-s.Offset, phnum*56, s.FileSize) {
			r.phdr = s.Addr + phoff - s.Offset
			break
		}
	}
	return r, len(r.segments) > 0
}

// FuzzScript holds Script against a line taken apart by hand.
func FuzzScript(f *testing.F) {
	f.Fuzz(func(t *testing.T, file []byte) {
		name, arg, ok := Script(bytes.NewReader(file))
		switch {
		case !ok:
			if name != "" {
				t.Fatalf("no script, but of %q", name)
			}
		case !bytes.HasPrefix(file, []byte("#!")):
			t.Fatalf("%.10q is taken for a script of %q", file, name)
		case name == "", strings.ContainsAny(name+arg, "\n"), strings.ContainsAny(name, " \t"), len(name)+len(arg) > maxScriptLine:
			t.Fatalf("%q, %q", name, arg)
		case !bytes.Contains(file, []byte(name)), !bytes.Contains(file, []byte(arg)):
			t.Fatalf("%q, %q are not of the file", name, arg)
		}
	})
}

// The host's own programs are read alike by both.
func TestNaiveReadingOfRealPrograms(t *testing.T) {
	read := 0
	for _, path := range []string{"/usr/bin/busybox", "/bin/sh", "/proc/self/exe", "/lib64/ld-linux-x86-64.so.2"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		im, err := Parse(bytes.NewReader(b), int64(len(b)))
		want, ok := naive(b, uint64(len(b)))
		if (err == nil) != ok || ok && (len(im.Segments) != len(want.segments) || im.PHDR != want.phdr || im.Interpreter != want.interpreter) {
			t.Errorf("%s: %+v, %v; want %+v", path, im, err, want)
		}
		if ok {
			read++
		}
	}
	if read == 0 {
		t.Skip("no x86-64 program here; to run this use Linux on amd64")
	}
}
