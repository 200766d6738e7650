package guestmem

import (
	"bytes"
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// An instruction that is fetched from what may not be executed is refused once the
// page is there, as by the kernel, whose first fault does not look for the permission:
// past the end of a file it is a bus error, on a guard page not mapped.
func TestRefusedFetchBringsThePage(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	o := newFile(t, m, bytes.NewReader(patternOf(3, int(page))), int64(page))
	defer o.Close()
	file := mapFile(t, as, o, 2, rw)
	anon := mapAt(t, as, 0x40000000, 2*page, rw)
	none := mapAt(t, as, 0x50000000, page, ProtNone)
	mustDo(t, as.Advise(ctx, anon+page, page, AdviceGuardInstall))
	for _, c := range []struct {
		name string
		at   int
		want error
	}{
		{"a file's page", 0, ErrAccess}, {"past its end", 1, ErrBus},
		{"an empty page", 2, ErrAccess}, {"a guard", 3, ErrNotMapped}, {"no permission", 4, ErrAccess},
	} {
		at := [...]addr.GVA{file, file + page, anon, anon + page, none}[c.at]
		if err := as.Fault(ctx, at, Execute); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for _, c := range []struct {
		at   addr.GVA
		want bool
	}{{file, true}, {anon, true}, {none, false}} {
		vec := make([]bool, 1)
		if _, err := as.Resident(c.at, page, vec); err != nil || vec[0] != c.want {
			t.Errorf("the page at %v is there: %v, %v", c.at, vec[0], err)
		}
	}
	mustCheck(t, m)
}
