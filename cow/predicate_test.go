package cow

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// mayWrite is R5 as the design states it, word by word: the area's write
// permission first, then the wish to be told, then ownership along the whole
// path; pins do not make a page shared.
func mayWrite(areaMayWrite, watched, ownPath, sharedArea bool, owners int) bool {
	if !areaMayWrite {
		return false
	}
	if watched {
		return false
	}
	if !ownPath {
		return false
	}
	return sharedArea || owners == 1
}

// TestR5Predicate compares the predicate with the rule over every combination
// of what it is asked.
func TestR5Predicate(t *testing.T) {
	p, _ := newPool(t, 64, Options{GrowFrames: 8, KeepFree: 64})
	type kind struct {
		name   string
		refs   int
		pinned bool
		owners int // references, a frame's pins being its owner's
	}
	kinds := []kind{
		{"one reference", 1, false, 1},
		{"two references", 2, false, 2},
		{"three references", 3, false, 3},
		{"pinned", 1, true, 1},
		{"pinned and shared", 2, true, 2},
		{"held by its pin alone", 0, true, 1},
	}
	asked := 0
	for _, k := range kinds {
		f := mustAlloc(t, p, 1)[0]
		for range k.refs - 1 {
			p.Share([]addr.PFN{f})
		}
		if k.pinned {
			p.Pin(f)
		}
		if k.refs == 0 {
			p.Drop(f)
		}
		for c := range 16 {
			w := Write{c&1 != 0, c&2 != 0, c&4 != 0, c&8 != 0, f}
			asked++
			if got, want := p.MayWrite(w), mayWrite(w.AreaMayWrite, w.Watched, w.OwnPath, w.SharedArea, k.owners); got != want {
				t.Errorf("%s, %+v: %v, want %v", k.name, w, got, want)
			}
		}
		if k.pinned && p.Unpin(f) {
			p.FreeData(f)
		}
		for range k.refs {
			p.DropData([]addr.PFN{f})
		}
	}
	if asked != 16*len(kinds) {
		t.Errorf("asked %d times", asked)
	}
}

// The order is part of the rule: what refuses without looking at the frame does
// so before the frame is looked at, which may not even be one.
func TestR5PredicateAsksInOrder(t *testing.T) {
	p, _ := newPool(t, 8, Options{})
	nowhere := firstFrame + 1<<30
	for _, w := range []Write{
		{false, false, true, false, nowhere},
		{true, true, true, false, nowhere},
		{true, false, false, false, nowhere},
		{false, true, false, true, nowhere},
	} {
		if p.MayWrite(w) {
			t.Errorf("%+v: true", w)
		}
	}
	if !p.MayWrite(Write{true, false, true, true, nowhere}) {
		t.Error("a page of a shared area depends on its count")
	}
	testutil.Panics(t, "a private page's frame is looked at last", func() { p.MayWrite(Write{true, false, true, false, nowhere}) })
}
