package addr

import (
	"math"
	"testing"
)

func TestArithmeticReportsOverflow(t *testing.T) {
	top := GVA(math.MaxUint64)
	if _, ok := top.Add(1); ok {
		t.Error("GVA.Add past the end: ok")
	}
	if got, ok := GVA(1).Add(math.MaxUint64 - 1); !ok || got != top {
		t.Errorf("GVA.Add up to the end = %v, %v", got, ok)
	}
	if _, ok := (top - 1).RoundUp(); ok {
		t.Error("RoundUp of the last page: ok")
	}
	if got, ok := GVA(PageSize + 1).RoundUp(); !ok || got != 2*PageSize {
		t.Errorf("RoundUp = %v, %v", got, ok)
	}
	if _, ok := GPA(math.MaxUint64).Add(1); ok {
		t.Error("GPA.Add past the end: ok")
	}
	if _, ok := RangeFrom(0x1000, math.MaxUint64); ok {
		t.Error("RangeFrom past the end: ok")
	}
	if _, ok := RoundUpLength(math.MaxUint64 - 1); ok {
		t.Error("RoundUpLength of nearly everything: ok")
	}
}

func TestRange(t *testing.T) {
	r := Range{0x1000, 0x3000}
	if got, want := r.String(), "[0x1000, 0x3000)"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
	if r.Contains(0x3000) || !r.Contains(0x1000) || !r.Contains(0x2fff) {
		t.Error("Contains is not half-open")
	}
	if r.Overlaps(Range{0x3000, 0x4000}) || !r.Overlaps(Range{0x2fff, 0x4000}) {
		t.Error("Overlaps is not half-open")
	}
	if got := r.Intersect(Range{0x2000, 0x9000}); got != (Range{0x2000, 0x3000}) {
		t.Errorf("Intersect = %v", got)
	}
	if got := r.Intersect(Range{0x3000, 0x9000}); !got.IsEmpty() {
		t.Errorf("Intersect of neighbours = %v", got)
	}
	if !r.ContainsRange(Range{0x1000, 0x3000}) || r.ContainsRange(Range{0x1000, 0x3001}) {
		t.Error("ContainsRange")
	}
}
