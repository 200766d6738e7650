package snapfile

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// resealAll makes the checksums of a file right, as far as its header tells where
// what they are of is: so that a fuzzer gets behind them.
func resealAll(b []byte) {
	if len(b) < headerSize {
		return
	}
	h := new(header)
	h.fields(&cursor{b: b, read: true})
	sum := func(off, n uint64, at int) {
		if off <= uint64(len(b)) && n <= uint64(len(b))-off {
			binary.LittleEndian.PutUint32(b[at:], checksum(b[off:off+n]))
		}
	}
	sum(h.stateOff, h.stateLen, 128)
	if h.nChunks <= MaxChunks && h.nExtents <= MaxChunks {
		sum(h.tablesOff, h.tablesLen(), 132)
	}
	binary.LittleEndian.PutUint32(b[headerChecksum:], checksum(b[:headerChecksum]))
}

// FuzzOpen opens whatever comes, with its checksums made right or not. It must not
// panic, make room for more than a multiple of the bytes, or give an error without a
// name; and what opens can be read, and verified or refused, without a panic.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	small(f, dir)
	for _, kind := range smallKinds {
		b, err := os.ReadFile(filepath.Join(dir, kind))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b[:len(b)/2], true)
		f.Add(b, false)
		for _, at := range []int{8, 44, 96, 112, 136, 144, 152, 168, 184, len(b) - 12, len(b) - 16, len(b) - 8, len(b) - 40} {
			c := append([]byte(nil), b...)
			c[at] ^= 0xff
			c[min(at+7, len(c)-1)] ^= 0x7f
			f.Add(c, true)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			b = append([]byte(nil), b...)
			resealAll(b)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		file, err := openSource(newBytesSource(b), "fuzz", OpenOptions{Codecs: []Codec{testCodec}}, newCache(1<<16), nil)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20+uint64(len(b))*32 {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), took)
		}
		if err != nil {
			if !isNamed(err) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrCodec) {
				t.Fatalf("%v has no name", err)
			}
			return
		}
		if file.h.increment() {
			file.parent = &File{h: &header{}, tables: &tables{regions: emptied(file.regions)}, src: newBytesSource(nil), cache: file.cache}
		}
		for i := range file.regions {
			r := &file.regions[i]
			p := make([]byte, min(r.Size, 64*addr.PageSize))
			_ = file.ReadPages(context.Background(), p, r.Base)
			_ = file.ReadPages(context.Background(), p[:addr.PageSize], r.Base+addr.GPA(r.Size)-addr.PageSize)
			last := uint64(0)
			if err := file.ZeroRanges(r.Base, func(start addr.GPA, n uint64) bool {
				if at := uint64(start - r.Base); at < last || n == 0 || at+n*addr.PageSize > r.Size {
					t.Fatalf("%d pages of zeroes at %v", n, start)
				}
				last = uint64(start-r.Base) + n*addr.PageSize
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
		file.parent = nil
		_ = file.Verify(context.Background(), nil)
		_ = file.Info()
	})
}

// claimAll has the first region of a file claim what the header says, less what the
// second one has.
func claimAll(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var h header
	h.fields(&cursor{b: b, read: true})
	var tables [2]table
	var nExtents [2]uint64
	for i := range tables {
		tables[i].fields(&cursor{b: b[h.tablesOff+uint64(i)*regionSize:], read: true}, &nExtents[i])
	}
	tables[0].nChunks, nExtents[0] = h.nChunks-tables[1].nChunks, h.nExtents-nExtents[1]
	tables[0].fields(&cursor{b: b[h.tablesOff:]}, &nExtents[0])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// emptied returns the regions without anything in them.
func emptied(regions []table) (out []table) {
	for _, r := range regions {
		out = append(out, table{Region: r.Region})
	}
	return out
}

// TestSmallFilesTakeLittleMemory: a file of a few bytes, or a hole of any length,
// that says that it has billions of records is refused without room for them.
func TestSmallFilesTakeLittleMemory(t *testing.T) {
	dir := t.TempDir()
	small(t, dir)
	path := filepath.Join(dir, "packed")
	reseal(t, path, func(b []byte) {
		var h header
		h.fields(&cursor{b: b, read: true})
		h.nExtents, h.nChunks = MaxChunks, MaxChunks
		h.fileSize = h.tablesOff + h.tablesLen()
		h.fields(&cursor{b: b})
	})
	if err := openErr(path, OpenOptions{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("short: %v", err)
	}
	claimAll(t, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var h header
	h.fields(&cursor{b: b, read: true})
	if err := os.Truncate(path, int64(h.tablesOff+2*regionSize)); err != nil { // no record of a chunk is right
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(h.fileSize)); err != nil {
		t.Skipf("no file of %d bytes here: %v", h.fileSize, err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = openErr(path, OpenOptions{})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("a hole: %v", err)
	} else if !strings.Contains(err.Error(), "chunk 0 has 0 bytes") {
		t.Errorf("a hole was refused before its records were read: %v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("a hole of %d bytes took %d bytes of memory", h.fileSize, took)
	}
}
