//go:build variants

package variant

import "os"

// Env is the environment variable that names the variant to run as. Where it is
// not set, nothing is broken.
const Env = "GUESTMM_VARIANT"

// Variant is one way to break the library.
type Variant struct {
	Name  string
	Rule  string // the rule of the design that it breaks; "logic" where it is none
	Break string // what is wrong
}

// Table has every variant.
var Table []Variant

func add(name, rule, what string) bool {
	Table = append(Table, Variant{name, rule, what})
	return os.Getenv(Env) == name
}

// What can be broken. Written before main, and read-only since.
var (
	NoSecondSweep            = add("no-second-sweep", "R1", "a change does not sweep again after the grace period")
	NoGracePeriod            = add("no-grace-period", "R1", "no change waits for read sections")
	NoSecondGracePeriod      = add("no-second-grace-period", "R1", "a change does not wait again for who walked to what its second sweep found")
	ForkDoesNotWait          = add("fork-does-not-wait", "R1", "fork returns beside writers that walked the old root")
	SequenceAfterTree        = add("sequence-after-tree", "R2", "StartRead loads the sequence after the tree")
	NoMarks                  = add("no-marks", "R2", "a change does not mark the areas that it takes pages from")
	NoWholeMark              = add("no-whole-mark", "R2", "fork does not mark the tree")
	PathOwnedUnasked         = add("path-owned-unasked", "R2", "who makes a path its own does not ask StartRead again")
	ReclaimAtOnce            = add("reclaim-at-once", "R4", "what is retired is reclaimed beside sections that may reach it")
	DropAtOnce               = add("drop-at-once", "R4", "the reference to a frame that was copied on write is dropped at once")
	WriteSharedInPlace       = add("write-shared-in-place", "R5", "a frame with two owners is written in place")
	CopiedLeafKeepsWrite     = add("copied-leaf-keeps-write", "R6", "a copy of a leaf table keeps write permission")
	MovedLeafKeepsWrite      = add("moved-leaf-keeps-write", "R6", "a moved leaf table keeps write permission whatever the counts")
	MovedTableKeepsWrite     = add("moved-table-keeps-write", "R6", "a moved table above the leaves keeps write permission")
	ForkOutsideTables        = add("fork-outside-tables", "R6", "fork copies the root without the tables mutex")
	BlockForgotten           = add("block-forgotten", "R6", "a copied table does not count the 2 MiB leaves that it has")
	CountForgotten           = add("count-forgotten", "R6", "a copied table does not count the last of what it leads to")
	PinTakesShared           = add("pin-takes-shared", "R7", "a pin takes a frame that a relative has too")
	ForkSharesPinned         = add("fork-shares-pinned", "R7", "fork leaves pinned frames shared")
	MoveSweepsAtOnce         = add("move-sweeps-at-once", "R1", "a move takes pages beside lookups that still install there")
	MoveDoesNotWait          = add("move-does-not-wait", "R1", "a move puts pages in at the target beside copiers that walked to the source")
	InstallsBesideChanges    = add("installs-beside-changes", "R9", "a monitor installs beside a change that it has not read of")
	MoveForgetsPins          = add("move-forgets-pins", "R7", "a move does not note where pinned frames have gone")
	ProtectSkipsSharedTables = add("protect-skips-shared-tables", "logic", "protect leaves tables alone that a relative has too")
	ProtectMissesLastLeaf    = add("protect-misses-last-leaf", "logic", "protect leaves the last page of a range alone")
	ProtectHeadUndone        = add("protect-head-undone", "logic", "protect of a range with a hole changes nothing below the hole")
	ZapMissesLastLeaf        = add("zap-misses-last-leaf", "logic", "unmap and discard leave the last page of a range")
	ZapSkipsSharedTables     = add("zap-skips-shared-tables", "logic", "unmap and discard leave tables alone that a relative has too")
	MapOverKeepsPages        = add("map-over-keeps-pages", "logic", "a fixed map keeps the pages of what it replaces")
	MergeIgnoresProt         = add("merge-ignores-prot", "logic", "areas with different protections merge")
	MergeIgnoresOffset       = add("merge-ignores-offset", "logic", "areas merge whose offsets do not follow one another")
	SplitKeepsOffset         = add("split-keeps-offset", "logic", "the upper part of a split area shows the object from where the lower did")
	GapOffByOnePage          = add("gap-off-by-one-page", "logic", "a placement from the top is one page too low")
	ShortCopy                = add("short-copy", "logic", "a copy on write lacks the last byte")
	NoZeroing                = add("no-zeroing", "logic", "a frame that was used before is installed as it is")
)

// Chosen returns the name of the variant that runs, or "".
//
// It panics if the environment names one that there is not: a run that breaks
// nothing by mistake would look like one that survived.
func Chosen() string {
	name := os.Getenv(Env)
	for _, v := range Table {
		if v.Name == name {
			return name
		}
	}
	if name != "" {
		panic("variant: there is no " + name)
	}
	return ""
}
