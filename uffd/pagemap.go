package uffd

import "github.com/guestmm/guestmm/guestmem/addr"

// Categories say what the page table knows of a page.
type Categories uint64

const (
	// PageWPAllowed: registered for WP with FeatureWPAsync.
	PageWPAllowed Categories = 1 << iota
	// PageWritten: not armed. Pages that were never armed count as written.
	PageWritten
	// PageFile: of a file or of shared memory.
	PageFile
	// PagePresent: in the page table and in memory.
	PagePresent
	// PageSwapped: swapped out. Its data is there all the same, though
	// mincore(2) calls it absent.
	PageSwapped
	// PageZero: the kernel's shared page of zeroes.
	PageZero
	// PageHuge: part of a huge page that is mapped as one.
	PageHuge
	// PageSoftDirty: written since /proc/PID/clear_refs was.
	PageSoftDirty
	// PageGuard: in a guard region (6.15).
	PageGuard
)

const allCategories = PageGuard<<1 - 1

// String lists the categories, as "written|present".
func (c Categories) String() string {
	return setString(uint64(c), nameIn("wp-allowed", "written", "file", "present", "swapped", "zero", "huge", "soft-dirty", "guard"))
}

// Has reports whether c has all of want.
func (c Categories) Has(want Categories) bool { return c&want == want }

// A Run is a range of pages of the same categories, of those asked for.
type Run struct {
	Start, End addr.HVA
	Categories Categories
}

// Selection says which pages a Scan finds, and what it does with them.
type Selection struct {
	// All: a page has each of these. Any: it has one of these; none given, no
	// condition. Not: it has none of these.
	All, Any, Not Categories
	// Report is what Run.Categories shows; runs are split where it changes.
	Report Categories
	// Arm write-protects what is found, in the same instant.
	Arm bool
	// OnlyAsync: fail where part of the range is not registered for WP with
	// FeatureWPAsync, rather than skip it. It goes with Arm.
	OnlyAsync bool
}

// Written selects what was written since it was last armed, arms it again, and
// fails on memory that cannot be tracked: one round of dirty tracking.
func Written() Selection {
	return Selection{All: PageWritten, Arm: true, OnlyAsync: true}
}

// Populated selects the pages that hold data of their own, in memory or
// swapped out: what a snapshot of private memory has to save. Of shared memory
// it finds only what this page table has mapped; ask the file, by SEEK_DATA.
func Populated() Selection {
	return Selection{Any: PagePresent | PageSwapped, Not: PageZero, Report: PagePresent | PageSwapped}
}

func (s Selection) check() error {
	all := s.All | s.Any | s.Not | s.Report
	if all&^allCategories != 0 || s.Not&(s.All|s.Any) != 0 || s.OnlyAsync && !s.Arm {
		return ErrInvalid
	}
	return nil
}

// Flags of PAGEMAP_SCAN.
const (
	scanArm       = 1 << 0 // PM_SCAN_WP_MATCHING
	scanOnlyAsync = 1 << 1 // PM_SCAN_CHECK_WPASYNC
)

// arg is the selection as the kernel takes it: what it inverts it also masks.
func (s Selection) arg() pmScanArg {
	a := pmScanArg{
		inverted:    uint64(s.Not),
		mask:        uint64(s.All | s.Not),
		anyOf:       uint64(s.Any),
		returnFlags: uint64(s.Report),
	}
	if s.Arm {
		a.flags |= scanArm
	}
	if s.OnlyAsync {
		a.flags |= scanOnlyAsync
	}
	return a
}
