package guest

import (
	"encoding/binary"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Where things lie in the low region of the guest, in its ring-3 program's
// addresses, which are the physical ones.
const (
	LongModeBase addr.GPA = 0x10000
	CodeBase     addr.GPA = 0x100000
	ConfigBase   addr.GPA = 0x110000
	ControlBase  addr.GPA = 0x111000 // vCPU n is n pages behind
	StackTop     addr.GPA = 0x130000 // vCPU n is n * StackSize behind
	StackSize             = 0x8000
	LocksBase    addr.GPA = 0x140000
	LedgerBase   addr.GPA = 0x200000 // vCPU n is n * LedgerSize behind
	LedgerSize            = 8 * LedgerEntries
	TablesBase   addr.GPA = 0x400000

	VCPUs         = 2
	LedgerEntries = 1 << 16
	MaxAreas      = 16
	MaxSeeds      = 16
	Doorbell      = 0x5e0
)

// AreaKind says which of the vCPUs write an area.
type AreaKind uint64

const (
	AreaOff    AreaKind = iota
	AreaHalves          // each its half
	AreaShared          // both, each page under a lock
)

// Command is what a vCPU is told to do between two doorbells.
type Command uint64

const (
	Nop    Command = iota
	Run            // write pages at random until the stop word is set, or args[0] of them
	Fill           // write all of its own; of area args[0]-1 alone, if that is not 0
	Verify         // look at all of its own; likewise
	Zero           // want args[2] pages from page args[1] of area args[0] on to be zero
	Touch          // load a word from args[0], store args[1], load it again
	ROM            // want args[1] pages from address args[0] on to be of seed args[2]
)

// Fields of the configuration, as offsets from ConfigBase.
const (
	ConfigStop    = 0
	ConfigLineage = 8
	ConfigSeeds   = 16
	ConfigNAreas  = ConfigSeeds + 8*MaxSeeds
	ConfigAreas   = ConfigNAreas + 8
	AreaSize      = 6 * 8
)

// Fields of a control page.
const (
	ControlCommand  = 0
	ControlArgs     = 8
	ControlConsumed = 40
	ControlHead     = 48
	ControlTail     = 56
	ControlRandom   = 64
	ControlResult   = 72
	ControlChecked  = 88
	ControlErrors   = 96
	ControlBad      = 104
)

// Area is a range of pages that the guest writes.
type Area struct {
	Base  addr.GPA
	Pages uint64
	Kind  AreaKind
	Table addr.GPA // of an entry for each page
	Locks uint64   // index of its first lock
	ID    uint64   // its place in the configuration, which ledgers tell
}

// Encode returns the area as the guest has it.
func (a Area) Encode() []byte {
	var b []byte
	for _, w := range []uint64{uint64(a.Base), a.Pages, uint64(a.Kind), uint64(a.Table), a.Locks, a.ID} {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// Entry is one of a ledger.
type Entry uint64

// Area returns the id of the area of the page.
func (e Entry) Area() uint64 { return uint64(e) >> 48 }

// Page returns the page's number in its area.
func (e Entry) Page() uint64 { return uint64(e) & (1<<48 - 1) }

// FillPage makes b the page that writer has written for the gen'th time.
func FillPage(b []byte, page, gen, writer, seed uint64) {
	x := page*0x9e3779b97f4a7c15 ^ gen*0xbf58476d1ce4e5b9 ^ writer*0x94d049bb133111eb ^ seed
	x ^= x >> 31
	x = x*0xd6e8feb86659fd93 | 1
	for i, w := range []uint64{page, gen, writer, seed} {
		binary.LittleEndian.PutUint64(b[i*8:], w)
	}
	for i := 32; i < addr.PageSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], x)
		x = x*6364136223846793005 + 1442695040888963407
	}
}
