package snaptest

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
)

// Content is what page n of a good file's region holds, if it has data.
func Content(region int, n uint64) []byte {
	return bytes.Repeat([]byte{byte(n), byte(region + 1), 0xc5, byte(n >> 8)}, PageSize/4)
}

// pages is the content of pages that follow each other.
func pages(region int, first, n uint64) (out []byte) {
	for i := range n {
		out = append(out, Content(region, first+i)...)
	}
	return out
}

// Good returns a file that is right: "packed", "raw", "flate" or "increment", whose
// parent is the packed one under the name "packed".
func Good(kind string) *File {
	f := &File{Version: 1, ChunkSize: 4 * PageSize, CodecName: "none", State: []byte("state")}
	chunk := Plain
	switch kind {
	case "raw":
		f.Flags = Raw
	case "flate":
		f.Codec, f.CodecName, chunk = FlateCodec, "flate", Flate
	case "increment":
		f.Flags, f.Parent, f.ParentPath = Increment, Good("packed").ID(), "packed"
	}
	f.Regions = []Region{
		{Base: 1 << 20, Size: 16 * PageSize, PageSize: PageSize, Name: "ram",
			Chunks:  []Chunk{chunk(pages(0, 2, 3)), chunk(pages(0, 9, 2))},
			Extents: []Extent{{2, 3, Data}, {9, 2, Data}}},
		{Base: 1 << 30, Size: 8 * PageSize, PageSize: 2 << 20, Flags: ReadOnly, Name: "rom",
			Chunks: []Chunk{chunk(pages(1, 0, 1))}, Extents: []Extent{{0, 1, Data}}},
	}
	if kind == "increment" {
		ram := &f.Regions[0]
		ram.Extents = append(ram.Extents, Extent{12, 3, Zeroes})
	}
	return f
}

// Kinds are those of Good.
var Kinds = []string{"packed", "raw", "flate", "increment"}

// Wrong is a change that spoils a good file. One that does not apply to the kind
// returns false.
type Wrong struct {
	Name  string
	Spoil func(f *File) bool
}

func always(change func(f *File)) func(*File) bool {
	return func(f *File) bool { change(f); return true }
}

// word has a word of the header say something else.
func word(at int, v uint64) func(*File) bool {
	return func(f *File) bool {
		before := f.Header
		f.Header = func(h []byte) {
			if before != nil {
				before(h)
			}
			binary.LittleEndian.PutUint64(h[at:], v)
		}
		return true
	}
}

func isKind(flags uint32) func(*File) bool { return func(f *File) bool { return f.Flags&flags != 0 } }

func only(when func(*File) bool, change func(*File)) func(*File) bool {
	return func(f *File) bool {
		if when(f) {
			change(f)
			return true
		}
		return false
	}
}

func hasCodec(f *File) bool   { return f.Codec != 0 }
func hasNoCodec(f *File) bool { return f.Codec == 0 }
func isFull(f *File) bool     { return f.Flags&Increment == 0 }
func isPacked(f *File) bool   { return f.Flags&Raw == 0 }

func ram(f *File) *Region { return &f.Regions[0] }

// Nonsense are changes after which a file is not to be taken, or its data not to be
// given out.
var Nonsense = []Wrong{
	// Regions.
	{"regions overlap", always(func(f *File) { f.Regions[1].Base = ram(f).Base + ram(f).Size - PageSize })},
	{"regions descend", always(func(f *File) { f.Regions[0], f.Regions[1] = f.Regions[1], f.Regions[0] })},
	{"the same region twice", always(func(f *File) { f.Regions[1] = *ram(f) })},
	{"a region of no bytes", always(func(f *File) { f.Regions = append(f.Regions, Region{Base: 1 << 40, PageSize: PageSize}) })},
	{"a region of half a page", always(func(f *File) { ram(f).Size -= PageSize / 2 })},
	{"a base within a page", always(func(f *File) { ram(f).Base += 8 })},
	{"a base near 2^63", always(func(f *File) { f.Regions[1].Base = 1<<63 - PageSize })},
	{"a base near 2^64", always(func(f *File) { f.Regions[1].Base = math.MaxUint64 &^ (PageSize - 1) })},
	{"a size near 2^63", only(isPacked, func(f *File) { f.Regions[1].Size = 1<<63 - PageSize })},
	{"sizes that add up to none", only(isPacked, func(f *File) { f.Regions[1].Size = -ram(f).Size })},
	{"pages of no bytes", always(func(f *File) { ram(f).PageSize = 0 })},
	{"pages of three bytes", always(func(f *File) { ram(f).PageSize = 3 })},
	{"pages of 12 KiB", always(func(f *File) { ram(f).PageSize = 3 * PageSize })},
	{"pages of 2^63 bytes", always(func(f *File) { ram(f).PageSize = 1 << 63 })},
	{"flags of a region", always(func(f *File) { ram(f).Flags |= 0x80 })},
	{"a name with a zero in it", always(func(f *File) { ram(f).Name = "r\x00m" })},
	{"a name that is too long", always(func(f *File) { ram(f).Name = strings.Repeat("n", 256) })},
	{"a name longer than its field", always(func(f *File) {
		f.Tables = func(b []byte) { binary.LittleEndian.PutUint32(b[28:], math.MaxUint32) }
	})},
	{"something behind a name", always(func(f *File) { f.Tables = func(b []byte) { b[48+255] = 1 } })},
	{"a region with more chunks", always(func(f *File) { f.Tables = func(b []byte) { b[32]++ } })},
	{"a region with 2^63 extents", always(func(f *File) { f.Tables = func(b []byte) { b[47] = 0x80 } })},
	{"chunks of the next region", always(func(f *File) { f.Tables = func(b []byte) { b[32]++; b[304+32]-- } })},
	{"extents of the next region", always(func(f *File) { f.Tables = func(b []byte) { b[40]++; b[304+40]-- } })},
	{"no regions, with data", always(func(f *File) { f.Tables = func(b []byte) { clear(b[:608]) } })},

	// Extents.
	{"an extent beyond the region", always(func(f *File) { ram(f).Extents[1].First = 15 })},
	{"an extent near 2^52 pages", always(func(f *File) { ram(f).Extents[1].First = 1<<52 - 1 })},
	{"an extent near 2^63 bytes", always(func(f *File) { ram(f).Extents[1].First = 1<<51 - 1 })},
	{"an extent near 2^64", always(func(f *File) { ram(f).Extents[1].First = math.MaxUint64 })},
	{"an extent of no pages", always(func(f *File) { ram(f).Extents[0].Pages = 0 })},
	{"an extent of 2^32-1 pages", always(func(f *File) { ram(f).Extents[0].Pages = math.MaxUint32 })},
	{"a page twice", always(func(f *File) { ram(f).Extents[1].First = 4 })},
	{"pages that descend", always(func(f *File) { e := ram(f).Extents; e[0].First, e[1].First = 9, 2 })},
	{"a kind of extent that nobody knows", always(func(f *File) { ram(f).Extents[0].Kind = 2 })},
	{"a kind of extent of 2^32-1", always(func(f *File) { ram(f).Extents[0].Kind = math.MaxUint32 })},
	{"zeroes in a full file", only(isFull, func(f *File) { ram(f).Extents = append(ram(f).Extents, Extent{14, 1, Zeroes}) })},
	{"an extent over the end of its chunk", always(func(f *File) { ram(f).Extents[0].Pages = 4 })},
	{"an extent short of its chunk", always(func(f *File) { ram(f).Extents[0].Pages = 2 })},
	{"an extent without a chunk", always(func(f *File) { ram(f).Extents = append(ram(f).Extents, Extent{14, 1, Data}) })},
	{"a chunk without an extent", always(func(f *File) { ram(f).Extents = ram(f).Extents[:1] })},
	{"two extents of a chunk in a raw file", only(isKind(Raw), func(f *File) {
		ram(f).Extents = []Extent{{2, 2, Data}, {4, 1, Data}, {9, 2, Data}}
	})},

	// Chunks.
	{"a chunk of no pages", always(func(f *File) { ram(f).Chunks[0].Pages = 0 })},
	{"a chunk of more pages than a chunk has", always(func(f *File) { ram(f).Chunks[0].Pages = 5; ram(f).Extents[0].Pages = 5 })},
	{"a chunk of 2^32-1 pages", always(func(f *File) { ram(f).Chunks[0].Pages = math.MaxUint32 })},
	{"a chunk of no bytes", always(func(f *File) { ram(f).Chunks[0].Length = 0 })},
	{"a chunk of 2^32-1 bytes", always(func(f *File) { ram(f).Chunks[0].Length = math.MaxUint32 })},
	{"a chunk of more bytes than pages", always(func(f *File) { ram(f).Chunks[0].Length = 3*PageSize + 1 })},
	{"an encoded chunk without a codec", only(hasNoCodec, func(f *File) { ram(f).Chunks[0].Length-- })},
	{"content that is something else", always(func(f *File) { ram(f).Chunks[0].Wrong = 1 })},
	{"a chunk that becomes less", only(hasCodec, func(f *File) {
		c := &ram(f).Chunks[0]
		*c = Flate(pages(0, 2, 2))
		c.Pages = 3
	})},
	{"a chunk that becomes more", only(hasCodec, func(f *File) {
		c := &ram(f).Chunks[0]
		*c = Flate(pages(0, 2, 4000))
		c.Pages = 3
	})},
	{"a chunk that becomes less than a byte", only(hasCodec, func(f *File) {
		c := &ram(f).Chunks[0]
		*c = Flate(nil)
		c.Pages = 3
	})},
	{"a chunk that the codec does not know", only(hasCodec, func(f *File) {
		c := &ram(f).Chunks[0]
		c.Stored = bytes.Repeat([]byte{0xff}, len(c.Stored))
	})},

	// The header.
	{"version 0", always(func(f *File) { f.Version = 0 })},
	{"version 2", always(func(f *File) { f.Version = 2 })},
	{"version 2^32-1", always(func(f *File) { f.Version = math.MaxUint32 })},
	{"flags that nobody knows", always(func(f *File) { f.Flags |= 4 })},
	{"raw and an increment", always(func(f *File) { f.Flags |= Raw | Increment })},
	{"raw with a codec", only(isKind(Raw), func(f *File) { f.Codec, f.CodecName = FlateCodec, "flate" })},
	{"a codec that nobody has", always(func(f *File) { f.Codec, f.CodecName = 78, "lz" })},
	{"chunks of no bytes at most", always(func(f *File) { f.ChunkSize = 0 })},
	{"chunks of 12 KiB at most", always(func(f *File) { f.ChunkSize = 3 * PageSize })},
	{"chunks of 2 GiB at most", always(func(f *File) { f.ChunkSize = 1 << 31 })},
	{"file size 0", word(96, 0)},
	{"file size near 2^63", word(96, 1<<63-1)},
	{"state at 0", word(104, 0)},
	{"state near 2^63", word(104, 1<<63-PageSize)},
	{"state near 2^64", word(104, math.MaxUint64)},
	{"state of 2^40 bytes", word(112, 1<<40)},
	{"state of 2^64-1 bytes", word(112, math.MaxUint64)},
	{"tables at 0", word(120, 0)},
	{"tables near 2^63", word(120, 1<<63-PageSize)},
	{"2^31 chunks", word(136, 1<<31)},
	{"2^60 chunks", word(136, 1<<60)},
	{"2^31 extents", word(144, 1<<31)},
	{"2^64-1 extents", word(144, math.MaxUint64)},
	{"more data pages", word(152, 100)},
	{"2^64-1 data pages", word(152, math.MaxUint64)},
	{"2^64-1 zero pages", word(160, math.MaxUint64)},
	{"no memory", word(168, 0)},
	{"memory of 2^64-1 bytes", word(168, math.MaxUint64)},
	{"nothing stored", word(176, 0)},
	{"2^63 bytes stored", word(176, 1<<63)},
	{"2^32-1 regions", word(184, math.MaxUint32)},
	{"no regions", word(184, 0)},
	{"something behind the fields", word(2000, 1)},
	{"something behind the file", always(func(f *File) { f.Behind = []byte{0} })},
	{"a page behind the file", always(func(f *File) { f.Behind = make([]byte, PageSize) })},

	// Parents.
	{"a full file with a parent", only(isFull, func(f *File) { f.Parent = Good("packed").ID() })},
	{"a full file with a parent's path", only(isFull, func(f *File) { f.ParentPath = "packed" })},
	{"an increment without a parent", only(isPacked, func(f *File) { f.Flags |= Increment; f.Parent, f.ParentPath = [32]byte{}, "" })},
	{"an increment to none by name", only(isPacked, func(f *File) { f.Flags |= Increment; f.Parent, f.ParentPath = Good("packed").ID(), "" })},
	{"a parent that is not there", only(isKind(Increment), func(f *File) { f.ParentPath = "nobody" })},
	{"a parent elsewhere", only(isKind(Increment), func(f *File) { f.ParentPath = "../packed" })},
	{"a parent at the root", only(isKind(Increment), func(f *File) { f.ParentPath = "/etc/passwd" })},
	{"a parent with a zero in its path", only(isKind(Increment), func(f *File) { f.ParentPath = "pac\x00ked" })},
	{"a parent that is a directory", only(isKind(Increment), func(f *File) { f.ParentPath = "." })},
	{"another parent", only(isKind(Increment), func(f *File) { f.Parent[7] ^= 1 })},
	{"itself as its parent", only(isKind(Increment), func(f *File) { f.ParentPath = "hostile" })},
	{"a parent's path longer than its field", only(isKind(Increment), func(f *File) {
		f.Header = func(h []byte) { binary.LittleEndian.PutUint16(h[188:], 1025) }
	})},
	{"other regions than the parent", only(isKind(Increment), func(f *File) { f.Regions[1].Base += PageSize })},
	{"a smaller region than the parent", only(isKind(Increment), func(f *File) { ram(f).Size -= PageSize })},
	{"fewer regions than the parent", only(isKind(Increment), func(f *File) { f.Regions = f.Regions[:1] })},
	{"another page size than the parent", only(isKind(Increment), func(f *File) { ram(f).PageSize = 2 << 20 })},
}
