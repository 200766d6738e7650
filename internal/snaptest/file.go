package snaptest

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
)

// PageSize is a page of the format.
const PageSize = 4096

// Flags of a file and of a region, and kinds of extents.
const (
	Raw       = 1
	Increment = 2
	ReadOnly  = 1
	Data      = 0
	Zeroes    = 1
)

// FlateCodec is the number of the codec of Flate.
const FlateCodec = 77

// File is a file of version 1.
type File struct {
	Version, Flags   uint32
	Nonce            byte
	Codec, ChunkSize uint32
	CodecName        string
	Parent           [32]byte
	ParentPath       string
	State            []byte
	Regions          []Region

	// Header and Tables, if not nil, change what has been laid out, before it is summed
	// up: the counts of a header, the lengths of names.
	Header func(page []byte)
	Tables func(b []byte)
	// Behind is appended.
	Behind []byte
}

// Region is a region with what the file has of it.
type Region struct {
	Base, Size, PageSize uint64
	Flags                uint32
	Name                 string
	Chunks               []Chunk
	Extents              []Extent
}

// Chunk is a chunk. Its checksums are those of Stored and Content, added to Wrong.
type Chunk struct {
	Stored  []byte
	Content []byte
	Length  uint32 // of Stored, as the table says
	Pages   uint32
	Wrong   uint32 // is added to the checksum of the content
}

// Extent is a run of pages.
type Extent struct {
	First       uint64
	Pages, Kind uint32
}

// Plain is a chunk as it is.
func Plain(pages []byte) Chunk {
	return Chunk{Stored: pages, Content: pages, Length: uint32(len(pages)), Pages: uint32(len(pages) / PageSize)}
}

// Flate is a chunk that is encoded.
func Flate(pages []byte) Chunk {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed)
	_, _ = w.Write(pages)
	_ = w.Close()
	return Chunk{Stored: b.Bytes(), Content: pages, Length: uint32(b.Len()), Pages: uint32(len(pages) / PageSize)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// mostData bounds what is laid out of a raw file, whatever its regions say.
const mostData = 16 << 20

// Bytes returns the file.
func (f *File) Bytes() []byte {
	le := binary.LittleEndian
	var data, tables []byte
	var chunks, extents, dataPages, zeroPages, guest, stored uint64
	for _, r := range f.Regions {
		b := make([]byte, 304)
		le.PutUint64(b, r.Base)
		le.PutUint64(b[8:], r.Size)
		le.PutUint64(b[16:], r.PageSize)
		le.PutUint32(b[24:], r.Flags)
		le.PutUint32(b[28:], uint32(len(r.Name)))
		le.PutUint64(b[32:], uint64(len(r.Chunks)))
		le.PutUint64(b[40:], uint64(len(r.Extents)))
		copy(b[48:], r.Name)
		tables = append(tables, b...)
		if f.Flags&Raw != 0 {
			data = append(data, r.rawData()...)
		}
		chunks, extents, guest = chunks+uint64(len(r.Chunks)), extents+uint64(len(r.Extents)), guest+r.Size
	}
	for _, r := range f.Regions {
		for _, c := range r.Chunks {
			b := make([]byte, 16)
			le.PutUint32(b, c.Length)
			le.PutUint32(b[4:], c.Pages)
			le.PutUint32(b[8:], sum(c.Stored))
			le.PutUint32(b[12:], sum(c.Content)+c.Wrong)
			tables = append(tables, b...)
			if f.Flags&Raw == 0 {
				data = append(data, c.Stored...)
			}
			dataPages, stored = dataPages+uint64(c.Pages), stored+uint64(c.Length)
		}
	}
	for _, r := range f.Regions {
		for _, e := range r.Extents {
			b := make([]byte, 16)
			le.PutUint64(b, e.First)
			le.PutUint32(b[8:], e.Pages)
			le.PutUint32(b[12:], e.Kind)
			tables = append(tables, b...)
			if e.Kind == Zeroes {
				zeroPages += uint64(e.Pages)
			}
		}
	}
	if f.Tables != nil {
		f.Tables(tables)
	}
	h := make([]byte, PageSize)
	copy(h, "\x89gmm\r\n\x1a\n")
	stateAt := PageSize + uint64(len(data))
	tablesAt := stateAt + uint64(len(f.State))
	le.PutUint32(h[8:], f.Version)
	le.PutUint32(h[12:], f.Flags)
	h[16] = f.Nonce
	le.PutUint32(h[40:], f.Codec)
	le.PutUint32(h[44:], f.ChunkSize)
	copy(h[48:64], f.CodecName)
	copy(h[64:], f.Parent[:])
	for i, v := range []uint64{tablesAt + uint64(len(tables)), stateAt, uint64(len(f.State)), tablesAt} {
		le.PutUint64(h[96+8*i:], v)
	}
	le.PutUint32(h[128:], sum(f.State))
	le.PutUint32(h[132:], sum(tables))
	for i, v := range []uint64{chunks, extents, dataPages, zeroPages, guest, stored} {
		le.PutUint64(h[136+8*i:], v)
	}
	le.PutUint32(h[184:], uint32(len(f.Regions)))
	le.PutUint16(h[188:], uint16(len(f.ParentPath)))
	copy(h[190:190+1024], f.ParentPath)
	if f.Header != nil {
		f.Header(h)
	}
	le.PutUint32(h[4092:], sum(h[:4092]))
	return bytes.Join([][]byte{h, data, f.State, tables, f.Behind}, nil)
}

// rawData is the region with its chunks in their places, as far as there are any.
func (r *Region) rawData() []byte {
	data := make([]byte, min(r.Size, mostData))
	for i, c := range r.Chunks {
		if i < len(r.Extents) && r.Extents[i].First < uint64(len(data)/PageSize) {
			copy(data[r.Extents[i].First*PageSize:], c.Stored)
		}
	}
	return data
}

// ID is what increments to the file call it.
func (f *File) ID() [32]byte { return sha256.Sum256(f.Bytes()[:PageSize]) }
