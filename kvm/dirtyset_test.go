package kvm

import (
	"testing"

	"pgregory.net/rapid"
)

// TestDirtySetIsASet compares with a map of pages.
func TestDirtySetIsASet(t *testing.T) {
	const most = 3 * chunkPages
	rapid.Check(t, func(t *rapid.T) {
		s, model := make(dirtySet), map[uint64]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			first := rapid.Uint64Range(0, most).Draw(t, "first")
			n := rapid.Uint64Range(0, most).Draw(t, "n")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				words := rapid.SliceOfN(rapid.Uint64(), 0, 4).Draw(t, "words")
				s.addWords(first, words)
				for i := range uint64(len(words)) * 64 {
					if words[i/64]>>(i%64)&1 != 0 {
						model[first+i] = true
					}
				}
			case 1:
				s.add(first)
				model[first] = true
			case 3:
				s.remove(first)
				delete(model, first)
			case 4:
				other := make(dirtySet)
				for _, page := range rapid.SliceOfN(rapid.Uint64Range(0, most), 0, 9).Draw(t, "other") {
					if other.add(page); page >= first && page-first < n {
						model[page] = true
					}
				}
				s.addFrom(other, first, n)
			case 2:
				taken := map[uint64]bool{}
				s.extract(first, n, func(page uint64) { taken[page] = true })
				for i := range n {
					if got := taken[first+i]; got != model[first+i] {
						t.Fatalf("page %d: %v, want %v", first+i, got, model[first+i])
					}
					delete(model, first+i)
				}
			}
		}
		left := 0
		s.extract(0, 1<<40, func(page uint64) {
			if !model[page] {
				t.Fatalf("page %d is left", page)
			}
			left++
		})
		if left != len(model) || len(s) != 0 {
			t.Fatalf("%d pages left of %d, %d chunks", left, len(model), len(s))
		}
	})
}
