package pagetable

import "github.com/guestmm/guestmm/guestmem/addr"

// Entry is one x86-64 page-table entry, at any level.
type Entry uint64

// The bits in use. Software bits are those that the CPU ignores (9-11, 52); this is
// the one place that assigns them.
//
//	bit  name      who sets it           meaning
//	0    Present   us                    the entry leads somewhere: it owns one reference
//	1    Writable  us                    leaf: may be written; above: what is below is this space's own
//	2    User      us                    ring 3 may use it; clear in a leaf means PROT_NONE
//	5    Accessed  us ahead, the CPU     was read
//	6    Dirty     the CPU               was written
//	7    Huge      us                    a 2 MiB leaf (level 2)
//	9    Shared    us                    leaf of a shared area: never copied on write
//	10   Armed     us                    leaf: not writable, so that somebody is told of the next write
//	11   Guard     us                    in an absent leaf: no page may come here
//	52   Special   us                    leaf: leads to memory that is not the arena's, and is not counted
//	63   NoExec    us                    not executable
//
// A permission holds if it holds along the whole path: Writable and User are
// ANDed, NoExec is ORed. There is no entry that has a frame and is not present:
// PROT_NONE over a populated page clears User, so that no address lies in a
// non-present entry for a speculating CPU to follow.
//
// An absent leaf that holds software bits is a marker: Guard alone, a guard;
// Guard and Armed, poison (a guard that is broken memory to who touches it); Armed
// without Guard, with Shared where the area is, says that the page that comes here
// is armed.
const (
	Present  Entry = 1 << 0
	Writable Entry = 1 << 1
	User     Entry = 1 << 2
	Accessed Entry = 1 << 5
	Dirty    Entry = 1 << 6
	Huge     Entry = 1 << 7
	Shared   Entry = 1 << 9
	Armed    Entry = 1 << 10
	Guard    Entry = 1 << 11
	Special  Entry = 1 << 52
	NoExec   Entry = 1 << 63

	frameMask Entry = 0x000f_ffff_ffff_f000
)

// upper is what an entry above the leaves carries when what is below it is this
// space's own. Accessed is set ahead, so that the CPU has no reason to write
// into tables above the leaves.
const upper = Present | Writable | User | Accessed

// Frame returns the number of the frame that the entry leads to.
func (e Entry) Frame() addr.PFN { return addr.PFN(e & frameMask >> addr.PageShift) }

// address returns where the frame that the entry leads to begins.
func (e Entry) address() addr.GPA { return addr.GPA(e & frameMask) }

// Has reports whether all of the bits are set.
func (e Entry) Has(bits Entry) bool { return e&bits == bits }

// LeafEntry makes a leaf for frame f with the permission bits given; it is
// present, and marked accessed ahead: on hosts that shadow page tables the first
// touch of an entry without that bit costs six times as much.
func LeafEntry(f addr.PFN, perm Entry) Entry {
	return Entry(f)<<addr.PageShift | perm | Present | Accessed
}

// HugeEntry makes a 2 MiB leaf for the block that begins at f. One that may be
// written is dirty ahead: so the CPU never writes into a table above the leaves,
// which are copied without asking it.
func HugeEntry(f addr.PFN, perm Entry) Entry {
	if perm.Has(Writable) {
		perm |= Dirty
	}
	return LeafEntry(f, perm|Huge)
}

// SpecialEntry makes a leaf of a shared area for a page of memory that is not the
// arena's: a device's. It owns no reference.
func SpecialEntry(f addr.PFN, perm Entry) Entry { return LeafEntry(f, perm|Shared|Special) }

// IsSpecial reports whether a leaf leads to memory that is not counted.
func (e Entry) IsSpecial() bool { return e.Has(Present | Special) }

func upperEntry(f addr.PFN) Entry { return Entry(f)<<addr.PageShift | upper }

// Levels of a table: 4 is the root, 1 holds leaves for 4 KiB.
const (
	rootLevel = 4
	leafLevel = 1
	hugeLevel = 2 // holds 2 MiB leaves, beside entries that lead to tables of leaves
)

// HugeSpan is how many bytes a 2 MiB leaf covers, and HugeFrames how many frames.
const (
	HugeSpan   = 1 << 21
	HugeFrames = HugeSpan / addr.PageSize
)

// Limit is the end of the addresses that a guest program may use: the lower
// half of the canonical 48-bit space.
const Limit addr.GVA = 1 << 47

func shiftOf(level int) uint { return uint(addr.PageShift + 9*(level-1)) }

// indexOf returns the index of gva in a table of the level.
func indexOf(gva addr.GVA, level int) uint64 { return uint64(gva>>shiftOf(level)) & 511 }

// entrySpan returns how many bytes one entry of a table of the level covers.
func entrySpan(level int) uint64 { return 1 << shiftOf(level) }

// tableRange returns the range that the table of the level which covers gva
// spans.
func tableRange(gva addr.GVA, level int) addr.Range {
	span := entrySpan(level + 1)
	start := gva &^ addr.GVA(span-1)
	return addr.Range{Start: start, End: start + addr.GVA(span)}
}
