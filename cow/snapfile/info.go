package snapfile

import (
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Info describes a file. It can be made JSON of.
type Info struct {
	Path        string       `json:"path"`
	ID          ID           `json:"id"`
	Version     uint32       `json:"version"`
	Created     time.Time    `json:"created"`
	Layout      Layout       `json:"layout"`
	Codec       string       `json:"codec"`
	ChunkSize   uint64       `json:"chunk_size"`
	FileBytes   uint64       `json:"file_bytes"`   // how long the file looks, holes included
	StoredBytes uint64       `json:"stored_bytes"` // of the chunks, as they are in the file
	IndexBytes  uint64       `json:"index_bytes"`
	StateBytes  uint64       `json:"state_bytes"`
	GuestBytes  uint64       `json:"guest_bytes"` // the size of all regions
	DataPages   uint64       `json:"data_pages"`  // 4 KiB each, in this file
	ZeroPages   uint64       `json:"zero_pages"`  // zero here, whatever the parent has
	Chunks      uint64       `json:"chunks"`
	Extents     uint64       `json:"extents"`
	Regions     []RegionInfo `json:"regions"`
	// ParentPath is what the file has recorded of its parent, and Parent the one
	// that was found.
	ParentPath string `json:"parent_path,omitempty"`
	Parent     *Info  `json:"parent,omitempty"`
}

// RegionInfo is what Info says of a region.
type RegionInfo struct {
	Region
	DataPages uint64 `json:"data_pages"`
	ZeroPages uint64 `json:"zero_pages"`
	Chunks    uint64 `json:"chunks"`
	Extents   uint64 `json:"extents"`
}

// DataBytes returns how many bytes of guest memory the file has data for.
func (i Info) DataBytes() uint64 { return i.DataPages * addr.PageSize }

// Chain returns how many files it takes to restore this one: 1 if it is full.
func (i Info) Chain() int {
	n := 1
	for p := i.Parent; p != nil; p = p.Parent {
		n++
	}
	return n
}

func describe(path string, id ID, h *header, t *tables) Info {
	info := Info{
		Path:        path,
		ID:          id,
		Version:     h.version,
		Created:     time.Unix(0, h.created).UTC(),
		Layout:      h.layout(),
		Codec:       h.codecName,
		ChunkSize:   uint64(h.chunkSize),
		FileBytes:   h.fileSize,
		StoredBytes: h.storedBytes,
		IndexBytes:  h.tablesLen(),
		StateBytes:  h.stateLen,
		GuestBytes:  h.guestBytes,
		DataPages:   h.nDataPages,
		ZeroPages:   h.nZeroPages,
		Chunks:      h.nChunks,
		Extents:     h.nExtents,
		ParentPath:  h.parentAt,
	}
	for i := range t.regions {
		r := &t.regions[i]
		info.Regions = append(info.Regions, RegionInfo{r.Region, r.dataPages, r.zeroPages, r.nChunks, uint64(len(r.extents))})
	}
	return info
}
