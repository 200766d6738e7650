package sys

// Sharing says whether stores to a mapping reach what it maps.
type Sharing uint8

// How a mapping shares.
const (
	Shared  Sharing = iota // MAP_SHARED
	Private                // MAP_PRIVATE: copied on write
)

// Rights are what a mapping allows.
type Rights uint8

// Rights of mappings.
const (
	ReadWrite Rights = iota
	ReadOnly
)

// Reserve says whether the kernel sets memory aside for the whole mapping.
type Reserve uint8

// Reservation of mappings.
const (
	NoReserve Reserve = iota
	// Reserved fails at mmap where a pool of huge pages cannot serve the
	// whole mapping, instead of at a touch.
	Reserved
)

// Advice is what the kernel is told about a mapping.
type Advice uint8

// Advice of mappings.
const (
	HugePages   Advice = iota // MADV_HUGEPAGE
	NoHugePages               // MADV_NOHUGEPAGE
)

// MemoryPolicy is a NUMA policy, numerically MPOL_*.
type MemoryPolicy int

// NUMA policies.
const (
	PolicyDefault    MemoryPolicy = 0
	PolicyPreferred  MemoryPolicy = 1
	PolicyBind       MemoryPolicy = 2
	PolicyInterleave MemoryPolicy = 3
)

// HugePageSize is the size of the huge pages that memfds are made of here.
const HugePageSize = 2 << 20

// Area is a line of /proc/self/maps that overlaps what was asked for.
type Area struct {
	Start, End uint64
	Shared     bool
	Writable   bool
	File       bool // an inode is behind it
}
