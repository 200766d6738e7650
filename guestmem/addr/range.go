package addr

import "fmt"

// Range is the half-open range [Start, End) of guest-virtual addresses.
type Range struct{ Start, End GVA }

// RangeFrom returns [start, start+length), and false if the end overflows.
func RangeFrom(start GVA, length uint64) (Range, bool) {
	end, ok := start.Add(length)
	return Range{start, end}, ok
}

// Len returns the length in bytes.
func (r Range) Len() uint64 { return uint64(r.End - r.Start) }

// IsEmpty reports whether no address lies in r.
func (r Range) IsEmpty() bool { return r.Start >= r.End }

// IsAligned reports whether both ends are page boundaries.
func (r Range) IsAligned() bool { return r.Start.IsAligned() && r.End.IsAligned() }

// Contains reports whether a lies in r.
func (r Range) Contains(a GVA) bool { return r.Start <= a && a < r.End }

// ContainsRange reports whether all of o lies in r.
func (r Range) ContainsRange(o Range) bool { return r.Start <= o.Start && o.End <= r.End }

// Overlaps reports whether some address lies in both.
func (r Range) Overlaps(o Range) bool { return r.Start < o.End && o.Start < r.End }

// Intersect returns what lies in both; the result may be empty.
func (r Range) Intersect(o Range) Range {
	x := Range{max(r.Start, o.Start), min(r.End, o.End)}
	if x.IsEmpty() {
		return Range{}
	}
	return x
}

func (r Range) String() string { return fmt.Sprintf("[%#x, %#x)", uint64(r.Start), uint64(r.End)) }
