package pager

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzWorkingSet: whatever a file holds, it is refused by name, or it is a set
// that comes back the same, and can be held against images and merged.
func FuzzWorkingSet(f *testing.F) {
	for _, ws := range []*WorkingSet{
		{},
		{Pages: 100, Runs: []PageRun{{3, 5}, {0, 2}, {99, 1}}},
		{Image: Identity{1, 2}, Pages: maxImagePages, Runs: []PageRun{{maxImagePages / 2, maxImagePages / 2}, {7, 1}}},
	} {
		var b bytes.Buffer
		if _, err := ws.WriteTo(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, in := range [][]byte{file, resealed(file)} {
			ws, err := ReadWorkingSet(bytes.NewReader(in))
			if err != nil {
				if !isAny(err, ErrWorkingSet) {
					t.Fatalf("refused without a name: %v", err)
				}
				continue
			}
			var b bytes.Buffer
			if _, err := ws.WriteTo(&b); err != nil {
				t.Fatal(err)
			}
			again, err := ReadWorkingSet(&b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ws, again, cmpopts.EquateEmpty()); diff != "" {
				t.Fatal(diff)
			}
			merged, err := ws.Merge(ws)
			if err != nil || merged.Len() != ws.Len() {
				t.Fatalf("merged with itself: %d pages, %v; want %d", merged.Len(), err, ws.Len())
			}
			if ws.check(ws.Image, 64) == nil {
				ws.runsIn([]*region{newRegion(Region{Start: base, Size: 64 * smallPage, PageSize: smallPage}, 0)})
			}
		}
	})
}

// FuzzTakeover: whatever a description says, it is refused by name, or it is a
// guest whose pages are each in one place at most, and it comes back the same.
func FuzzTakeover(f *testing.F) {
	l := newLedger("guest", nil, []Region{{Start: base, Size: 8 * smallPage, PageSize: smallPage}, {Start: base + 1<<30, Size: 2 * hugePage, PageSize: hugePage}})
	l.regions[0].pages.remove(1, 3)
	l.layout.Store(l.layout.Load().moved(page(2), page(900), 2*smallPage))
	l.wakes = []addrRange{{page(1), page(2)}}
	l.vacant = []addrRange{{page(2), page(6)}}
	f.Add((&Takeover{l: l, image: Identity{1}}).encode())
	f.Add([]byte(takeoverMagic))
	f.Fuzz(func(t *testing.T, blob []byte) {
		for _, in := range [][]byte{blob, resealed(blob)} {
			if tooLarge(in) {
				continue
			}
			got, err := decodeTakeover(in)
			if err != nil {
				if !isAny(err, ErrHandover) {
					t.Fatalf("refused without a name: %v", err)
				}
				continue
			}
			layout := got.l.layout.Load()
			for _, r := range got.l.regions {
				for i := range min(r.pages.n, 1000) {
					at, _, ok := layout.locate(r, i, 1)
					if !ok {
						continue
					}
					if r2, i2, ok := layout.find(at); !ok || r2 != r || i2 != i {
						t.Fatalf("page %d of region %v is at %v, where page %d is (%v)", i, r.Region, at, i2, ok)
					}
				}
			}
			encoded := got.encode()
			again, err := decodeTakeover(encoded)
			if err != nil || !bytes.Equal(encoded, again.encode()) {
				t.Fatalf("it does not come back the same: %v", err)
			}
		}
	})
}

// resealed returns b with the checksum that it should have.
func resealed(b []byte) []byte {
	if len(b) < 4 {
		return b
	}
	return withSum(b)
}

// tooLarge keeps the fuzzer from descriptions of terabytes, which are sound and
// take their half byte a page.
func tooLarge(blob []byte) bool {
	const sizeAt = 8 + 32 + 8
	if len(blob) < sizeAt+8 {
		return false
	}
	at := sizeAt + 8 + binary.LittleEndian.Uint64(blob[sizeAt:])
	if at+24 < at || at+24 > uint64(len(blob)) {
		return false
	}
	return binary.LittleEndian.Uint64(blob[at+16:]) > 1<<30
}
