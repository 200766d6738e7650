package addr

import "fmt"

// The page is the unit of everything here: 4 KiB, as on every x86-64.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
	pageMask  = PageSize - 1
)

// GVA is a guest-virtual address.
type GVA uint64

// GPA is a guest-physical address.
type GPA uint64

// HVA is a host-virtual address.
type HVA uint64

// PFN is the number of a 4 KiB page of guest-physical memory: its GPA divided
// by PageSize. No frame that the library hands out has number 0.
type PFN uint64

// Add returns a+n, and false if that overflows.
func (a GVA) Add(n uint64) (GVA, bool) {
	sum := a + GVA(n)
	return sum, sum >= a
}

// RoundDown returns the start of the page that holds a.
func (a GVA) RoundDown() GVA { return a &^ pageMask }

// RoundUp returns the first page boundary at or above a, and false if there is
// none.
func (a GVA) RoundUp() (GVA, bool) {
	up := (a + pageMask) &^ pageMask
	return up, up >= a
}

// PageOffset returns the offset of a in its page.
func (a GVA) PageOffset() uint64 { return uint64(a & pageMask) }

// IsAligned reports whether a is the start of a page.
func (a GVA) IsAligned() bool { return a&pageMask == 0 }

func (a GVA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// Add returns a+n, and false if that overflows.
func (a GPA) Add(n uint64) (GPA, bool) {
	sum := a + GPA(n)
	return sum, sum >= a
}

// PFN returns the number of the page that holds a.
func (a GPA) PFN() PFN { return PFN(a >> PageShift) }

func (a GPA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

func (a HVA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// GPA returns the address of the frame's first byte.
func (f PFN) GPA() GPA { return GPA(f << PageShift) }

func (f PFN) String() string { return fmt.Sprintf("%#x", uint64(f)) }

// RoundUpLength rounds a length in bytes up to whole pages, and returns false
// if that overflows.
func RoundUpLength(n uint64) (uint64, bool) {
	up := (n + pageMask) &^ pageMask
	return up, up >= n
}
