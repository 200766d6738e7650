package snapfile

import (
	"encoding/hex"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Limits of the format and of this implementation. More is ErrLimit, whether
// asked for by Write or found in a file.
const (
	MaxRegions   = 4096          // regions of a file
	MaxName      = 255           // bytes in the name of a region
	MaxCodecName = 16            // bytes in the name of a codec
	MaxGuest     = 1 << 52       // guest-physical addresses: what x86-64 has
	MaxState     = 64 << 20      // bytes of vCPU and device state
	MaxChunk     = 4 << 20       // bytes in a chunk
	MaxChunks    = 1 << 31       // chunks, and also extents, of a file
	MaxChain     = 64            // files from an increment to its full file, both counted
	MaxPath      = 1024          // bytes in the recorded path of a parent
	DefaultChunk = 64 << 10      // bytes in a chunk where nothing is said
	minChunk     = addr.PageSize // the smallest chunk
)

// ID names a file: the SHA-256 of its header, which holds a random number and
// the checksums of the tables, and these those of the data. A file that is
// written again gets another one, though it holds the same. A pager.Identity
// can be made from it.
type ID [32]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String, for JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// Layout says where in the file the data is.
type Layout uint8

const (
	// LayoutAuto is LayoutRaw for a full file without a codec, else LayoutPacked.
	LayoutAuto Layout = iota
	// LayoutRaw gives every page a place of its own, the regions one after
	// another, with holes for zeroes: File.Raw. The file looks as long as the
	// guest's memory, and takes what is not zero of the disk.
	LayoutRaw
	// LayoutPacked has one chunk follow the other.
	LayoutPacked
)

func (l Layout) String() string {
	switch l {
	case LayoutAuto:
		return "auto"
	case LayoutRaw:
		return "raw"
	case LayoutPacked:
		return "packed"
	}
	return "unknown layout"
}

// MarshalText is String, for JSON.
func (l Layout) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// SyncPolicy says when Write returns.
type SyncPolicy uint8

const (
	// SyncAll: when the file and its name have reached the disk.
	SyncAll SyncPolicy = iota
	// SyncNone: when the file is there. A host that loses its power may lose it,
	// or leave one that Open or Verify refuses.
	SyncNone
)

// Options are those of Write. The zero value writes a full file that can be
// mapped.
type Options struct {
	// Parent makes the file an increment: Image.Data then yields what changed
	// since. It stays the caller's, and open until Write has returned. Its regions
	// and those of the image are the same.
	Parent *File
	// State is kept as it is: what vCPUs and devices need. At most MaxState.
	State []byte
	// Codec makes chunks smaller. Nil: they are kept as they are.
	Codec Codec
	// ChunkSize is what is checked and decoded at once: a power of two from 4 KiB
	// to MaxChunk. 0 means DefaultChunk. A page that is read costs a chunk.
	ChunkSize uint64
	Layout    Layout
	Sync      SyncPolicy
	// Workers is how many goroutines read, check and encode. 0 means GOMAXPROCS,
	// and at least 2. Each holds up to 1 MiB of data, or one chunk if that is
	// more, and as much again with a codec.
	Workers int
	// Progress is called now and then with how many bytes of guest memory have
	// been dealt with, of how many; by one goroutine at a time.
	Progress func(done, total uint64)
}

// OpenOptions are those of Open.
type OpenOptions struct {
	// Codecs are those that files of the chain may need.
	Codecs []Codec
	// FindParent returns where a parent is. It is given the path of the child, and
	// what the child has recorded: a path from the child's directory, or an
	// absolute one. Nil: a recorded path that stays below the child's directory
	// is followed, and ErrParent is the answer to any other, since a file that
	// somebody else has made should not choose what is opened.
	FindParent func(child, recorded string) (string, error)
	// CacheBytes is how much is kept of chunks that were checked and decoded, for
	// all files of the chain together. 0 means 4 MiB. What is in use comes on top.
	CacheBytes uint64
}
