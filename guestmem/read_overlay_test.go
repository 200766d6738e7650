package guestmem

import (
	"encoding/binary"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A private area has a page of its own from its first store on, and nobody who reads
// after that sees what others store to the object: see stillLeads.
func TestR4PrivateReadAfterACopyIsOfTheCopy(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("readers stop between the walk and the access under -tags invariants alone")
	}
	const mine, others = 5, 8
	for _, c := range []struct {
		name string
		read func(as *AddressSpace, gva addr.GVA) (uint64, error)
	}{
		{"Load64", func(as *AddressSpace, gva addr.GVA) (uint64, error) { return as.Load64(ctx, gva) }},
		{"Load32", func(as *AddressSpace, gva addr.GVA) (uint64, error) {
			v, err := as.Load32(ctx, gva)
			return uint64(v), err
		}},
		{"ReadAt", func(as *AddressSpace, gva addr.GVA) (uint64, error) { return readWord(as, gva, 8) }},
		{"ReadAt of two pages", func(as *AddressSpace, gva addr.GVA) (uint64, error) { return readWord(as, gva, 2*page) }},
		{"ReadCString", func(as *AddressSpace, gva addr.GVA) (uint64, error) {
			s, err := as.ReadCString(ctx, gva, 8)
			return uint64(s[0]), err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t, 16<<20)
			o := newObject(t, m, nil, nil, 2*page)
			private, shared := newSpace(t, m), newSpace(t, m)
			gva := mustMap(t, private, MapOptions{Length: 2 * page, Prot: rw, Flags: MapPrivate, Object: o})
			theirs := mustMap(t, shared, MapOptions{Length: 2 * page, Prot: rw, Flags: MapShared, Object: o})
			mustDo(t, shared.Store64(ctx, theirs, 1))
			if _, err := private.Load64(ctx, gva); err != nil {
				t.Fatal(err)
			}
			accessHook = func() {
				accessHook = nil
				mustEnd(t, "two stores", inBackground(func() {
					if err := private.Store64(ctx, gva, mine); err != nil {
						t.Error(err)
					}
					if err := shared.Store64(ctx, theirs, others); err != nil {
						t.Error(err)
					}
				}))
			}
			defer func() { accessHook = nil }()
			v, err := c.read(private, gva)
			mustDo(t, err)
			if accessHook != nil {
				t.Error("nothing was in between")
			}
			if v != mine {
				t.Errorf("read %d from a private page that had %d before the object had %d", v, mine, others)
			}
			mustCheck(t, m)
		})
	}
}

func readWord(as *AddressSpace, gva addr.GVA, n int) (uint64, error) {
	p := make([]byte, n)
	_, err := as.ReadAt(ctx, p, gva)
	return binary.LittleEndian.Uint64(p), err
}
