//go:build !variants

package variant

// What can be broken, and is not in this build. The list is that of on.go.
const (
	NoSecondSweep            = false
	NoGracePeriod            = false
	NoSecondGracePeriod      = false
	ForkDoesNotWait          = false
	SequenceAfterTree        = false
	NoMarks                  = false
	NoWholeMark              = false
	PathOwnedUnasked         = false
	ReclaimAtOnce            = false
	DropAtOnce               = false
	WriteSharedInPlace       = false
	CopiedLeafKeepsWrite     = false
	MovedLeafKeepsWrite      = false
	MovedTableKeepsWrite     = false
	ForkOutsideTables        = false
	BlockForgotten           = false
	CountForgotten           = false
	PinTakesShared           = false
	ForkSharesPinned         = false
	MoveSweepsAtOnce         = false
	MoveDoesNotWait          = false
	InstallsBesideChanges    = false
	MoveForgetsPins          = false
	ProtectSkipsSharedTables = false
	ProtectMissesLastLeaf    = false
	ProtectHeadUndone        = false
	ZapMissesLastLeaf        = false
	ZapSkipsSharedTables     = false
	MapOverKeepsPages        = false
	MergeIgnoresProt         = false
	MergeIgnoresOffset       = false
	SplitKeepsOffset         = false
	GapOffByOnePage          = false
	ShortCopy                = false
	NoZeroing                = false
)
