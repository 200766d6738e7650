package snapfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Version is the version of the format that Write writes and Open knows.
const Version = 1

// magic opens every file, in every version. Its first byte is no text, and its
// last ones show whether somebody has converted line ends.
const magic = "\x89gmm\r\n\x1a\n"

// headerSize is the length of the header, in every version. The rest of it is
// zero up to its checksum, which is its last word.
const (
	headerSize     = addr.PageSize
	headerChecksum = headerSize - 4
	codecNameSpace = MaxCodecName
)

// flags of the header. Others are of newer versions.
const (
	flagRaw = 1 << iota
	flagIncrement
	flagsKnown = flagRaw | flagIncrement
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// header is the first page of a file. docs/snapfile.md has it as a table.
type header struct {
	version   uint32
	flags     uint32
	nonce     [16]byte
	created   int64 // ns since 1970
	codecID   uint32
	codecName string
	chunkSize uint32
	parent    ID
	parentAt  string // the recorded path

	fileSize    uint64
	stateOff    uint64 // the end of the data
	stateLen    uint64
	tablesOff   uint64
	stateCRC    uint32
	tablesCRC   uint32
	nRegions    uint32
	nChunks     uint64
	nExtents    uint64
	nDataPages  uint64
	nZeroPages  uint64
	guestBytes  uint64
	storedBytes uint64
}

func (h *header) raw() bool       { return h.flags&flagRaw != 0 }
func (h *header) increment() bool { return h.flags&flagIncrement != 0 }

func (h *header) layout() Layout {
	if h.raw() {
		return LayoutRaw
	}
	return LayoutPacked
}

func (h *header) tablesLen() uint64 {
	return uint64(h.nRegions)*regionSize + h.nChunks*chunkSize + h.nExtents*extentSize
}

// cursor walks over a record, to write it or to read it: one list of fields
// for both.
type cursor struct {
	b    []byte
	read bool
}

func (c *cursor) next(n int) []byte {
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u16(v *uint16) {
	if b := c.next(2); c.read {
		*v = binary.LittleEndian.Uint16(b)
	} else {
		binary.LittleEndian.PutUint16(b, *v)
	}
}

func (c *cursor) u32(v *uint32) {
	if b := c.next(4); c.read {
		*v = binary.LittleEndian.Uint32(b)
	} else {
		binary.LittleEndian.PutUint32(b, *v)
	}
}

func (c *cursor) u64(v *uint64) {
	if b := c.next(8); c.read {
		*v = binary.LittleEndian.Uint64(b)
	} else {
		binary.LittleEndian.PutUint64(b, *v)
	}
}

func (c *cursor) bytes(v []byte) {
	if b := c.next(len(v)); c.read {
		copy(v, b)
	} else {
		copy(b, v)
	}
}

func (h *header) fields(c *cursor) {
	var start [len(magic)]byte
	copy(start[:], magic)
	var name [codecNameSpace]byte
	var path [MaxPath]byte
	var pathLen uint16
	created := uint64(h.created)
	if !c.read {
		copy(name[:], h.codecName)
		pathLen = uint16(copy(path[:], h.parentAt))
	}
	c.bytes(start[:])
	c.u32(&h.version)
	c.u32(&h.flags)
	c.bytes(h.nonce[:])
	c.u64(&created)
	c.u32(&h.codecID)
	c.u32(&h.chunkSize)
	c.bytes(name[:])
	c.bytes(h.parent[:])
	c.u64(&h.fileSize)
	c.u64(&h.stateOff)
	c.u64(&h.stateLen)
	c.u64(&h.tablesOff)
	c.u32(&h.stateCRC)
	c.u32(&h.tablesCRC)
	c.u64(&h.nChunks)
	c.u64(&h.nExtents)
	c.u64(&h.nDataPages)
	c.u64(&h.nZeroPages)
	c.u64(&h.guestBytes)
	c.u64(&h.storedBytes)
	c.u32(&h.nRegions)
	c.u16(&pathLen)
	c.bytes(path[:])
	if c.read {
		h.created = int64(created)
		h.codecName = string(bytes.TrimRight(name[:], "\x00"))
		h.parentAt = string(path[:min(int(pathLen), MaxPath)])
		if int(pathLen) > MaxPath {
			h.parentAt = ""
		}
	}
}

// encode returns the header as a page, with its checksum.
func (h *header) encode() []byte {
	p := make([]byte, headerSize)
	h.fields(&cursor{b: p})
	binary.LittleEndian.PutUint32(p[headerChecksum:], checksum(p[:headerChecksum]))
	return p
}

// decodeHeader reads the header of a file of size bytes from its first page, or
// as much of that as there is. What it returns is within all limits, and its
// sections lie one behind the other and fill the file.
func decodeHeader(p []byte, size uint64) (*header, ID, error) {
	if n := min(len(p), len(magic)); string(p[:n]) != magic[:n] {
		return nil, ID{}, ErrForeign
	}
	if len(p) < headerSize {
		return nil, ID{}, fmt.Errorf("%w: it has %d bytes", ErrTruncated, size)
	}
	h := new(header)
	h.fields(&cursor{b: p, read: true})
	sumError := error(nil)
	if got, want := checksum(p[:headerChecksum]), binary.LittleEndian.Uint32(p[headerChecksum:]); got != want {
		sumError = damagedf("the checksum of the header is %#x and should be %#x", got, want)
	}
	switch {
	case h.version > Version && sumError != nil:
		return nil, ID{}, fmt.Errorf("%w: it says %d, and %d is known; or %w", ErrNewer, h.version, Version, sumError)
	case sumError != nil:
		return nil, ID{}, sumError
	case h.version > Version:
		return nil, ID{}, fmt.Errorf("%w: %d, and %d is known", ErrNewer, h.version, Version)
	case h.version == 0:
		return nil, ID{}, damagedf("its version is 0")
	case h.flags&^uint32(flagsKnown) != 0:
		return nil, ID{}, fmt.Errorf("%w: it has flags %#x, and %#x are known", ErrNewer, h.flags, flagsKnown)
	case !bytes.Equal(h.encode(), p):
		return nil, ID{}, damagedf("the header has something beside its fields")
	}
	if err := h.check(size); err != nil {
		return nil, ID{}, err
	}
	return h, sha256.Sum256(p), nil
}

// check holds the header against the limits and the size of the file. No sum
// here overflows: each count is bounded before it is used.
func (h *header) check(size uint64) error {
	switch {
	case h.nRegions > MaxRegions:
		return limitf("%d regions, of at most %d", h.nRegions, MaxRegions)
	case h.nChunks > MaxChunks || h.nExtents > MaxChunks:
		return limitf("%d chunks and %d extents, of at most %d", h.nChunks, h.nExtents, uint64(MaxChunks))
	case h.stateLen > MaxState:
		return limitf("a state of %d bytes, of at most %d", h.stateLen, MaxState)
	case h.guestBytes > MaxGuest || h.nDataPages > h.guestBytes/addr.PageSize || h.nZeroPages > h.guestBytes/addr.PageSize:
		return damagedf("%d pages of data and %d of zeroes in %d bytes of memory", h.nDataPages, h.nZeroPages, h.guestBytes)
	case h.stateOff > math.MaxInt64/4:
		return damagedf("its data ends at %#x", h.stateOff)
	case checkChunkSize(uint64(h.chunkSize)) != nil:
		return damagedf("its chunks are of %d bytes", h.chunkSize)
	case h.increment() && (h.raw() || h.parentAt == "" || h.parent == ID{}),
		!h.increment() && (h.parentAt != "" || h.parent != ID{} || h.nZeroPages != 0):
		return damagedf("it is full and an increment at once")
	case strings.ContainsRune(h.parentAt, 0):
		return damagedf("the path of its parent has a zero byte in it")
	case h.raw() && h.codecID != codecNone:
		return damagedf("it is raw and has a codec")
	}
	dataLen := h.storedBytes
	if h.raw() {
		dataLen = h.guestBytes
	}
	tablesEnd := h.tablesOff + h.tablesLen()
	if h.storedBytes > h.guestBytes || h.stateOff != headerSize+dataLen || h.tablesOff != h.stateOff+h.stateLen || h.fileSize != tablesEnd {
		return damagedf("its sections do not follow each other")
	}
	if size < h.fileSize {
		return fmt.Errorf("%w: %d bytes of %d", ErrTruncated, size, h.fileSize)
	}
	if size > h.fileSize {
		return damagedf("%d bytes follow its end", size-h.fileSize)
	}
	return nil
}

func checkChunkSize(n uint64) error {
	if n < minChunk || n > MaxChunk || n&(n-1) != 0 {
		return invalidf("chunks of %d bytes; a power of two from %d to %d", n, minChunk, MaxChunk)
	}
	return nil
}
