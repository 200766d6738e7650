package uffd

// Mode says which faults of a range are reported.
type Mode uint64

const (
	// Missing: a page that is not there is touched.
	Missing Mode = 1 << iota
	// WP: an armed page is written.
	WP
	// Minor: a page that is in the page cache, and not in the page table, is
	// touched. Shared memory and hugetlb only.
	Minor
)

// String lists the modes, as "missing|wp".
func (m Mode) String() string {
	return setString(uint64(m), nameIn("missing", "wp", "minor"))
}

// Flags change how a range is dealt with. Each call names those it takes, and
// answers ErrInvalid to others.
type Flags uint32

const (
	// DontWake leaves who waits for the page asleep: call Wake afterwards.
	DontWake Flags = 1 << iota
	// Armed: the page is write-protected from its first instant on.
	Armed
	// AllowHoles lets Move skip source pages that are not there.
	AllowHoles
)

// String lists the flags, as "dont-wake|armed".
func (f Flags) String() string {
	return setString(uint64(f), nameIn("dont-wake", "armed", "allow-holes"))
}

// Ioctls is the set of operations that a registered range allows.
type Ioctls uint64

// The operations on a range.
const (
	IoctlWake         Ioctls = 1 << 0x02
	IoctlCopy         Ioctls = 1 << 0x03
	IoctlZero         Ioctls = 1 << 0x04
	IoctlMove         Ioctls = 1 << 0x05
	IoctlWriteProtect Ioctls = 1 << 0x06
	IoctlContinue     Ioctls = 1 << 0x07
	IoctlPoison       Ioctls = 1 << 0x08
)

// Has reports whether i has all of want.
func (i Ioctls) Has(want Ioctls) bool { return i&want == want }

// String lists the operations, as "wake|copy|zero".
func (i Ioctls) String() string {
	return setString(uint64(i), nameIn("register", "unregister", "wake", "copy", "zero", "move", "write-protect", "continue", "poison"))
}

func nameIn(names ...string) func(int) string {
	return func(bit int) string {
		if bit < len(names) {
			return names[bit]
		}
		return ""
	}
}
