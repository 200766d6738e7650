package snapfile

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Write writes an image to a file, which takes the place of one that was there:
// nobody ever sees part of it. It is a temporary in the same directory until all of
// it has reached the disk, and then renamed; see RemoveStale for one whose writer
// was killed. It can be read by its owner alone (0600), being a guest's memory.
//
// Memory is bounded by Options.Workers and by the index, which takes some 32 bytes
// for each chunk, or run of pages where memory is scattered: nothing for what is zero.
//
// After an error the temporary is gone, and what stood at path is as it was; but
// if syncing the directory has failed, the new file is there and may not outlive
// a loss of power. Errors: ErrImage; ErrCodec; ErrNoSpace; ErrRegions (not those of
// the parent); ErrParent (a chain too long, or path is of a file of the chain);
// ErrLimit; ErrInvalid; ErrClosed; that of ctx; those of the file system.
//
// Safe for concurrent use; of two that write to one path the last one stays.
func Write(ctx context.Context, path string, img Image, o Options) (Info, error) {
	info, err := write(ctx, path, img, o)
	return info, fileError("write", path, err)
}

func write(ctx context.Context, path string, img Image, o Options) (Info, error) {
	w := &writer{img: img, codec: o.Codec, progress: o.Progress, workers: o.Workers}
	if err := w.prepare(path, o); err != nil {
		return Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	dir := filepath.Dir(path)
	removeStale(dir)
	var err error
	if w.out, err = createTemporary(dir); err != nil {
		return Info{}, err
	}
	defer w.out.discard()
	if err := w.data(ctx); err != nil {
		return Info{}, err
	}
	if err := w.rest(o.State); err != nil {
		return Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	if err := w.out.commit(path, o.Sync); err != nil {
		return Info{}, err
	}
	return w.info(path, o), nil
}

// writer is a Write under way.
type writer struct {
	img      Image
	codec    Codec
	progress func(done, total uint64)
	workers  int

	h      header // but for what is known at the end only
	id     ID     // known at the end
	tables        // grows in the order of addresses: see batch.turn
	out    *temporary
	end    uint64 // of the data, in a packed file; guarded by the turn
}

// prepare checks the options and lays out what is known before any data.
func (w *writer) prepare(path string, o Options) error {
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunk
	}
	if err := checkChunkSize(o.ChunkSize); err != nil {
		return err
	}
	if len(o.State) > MaxState {
		return limitf("a state of %d bytes, of at most %d", len(o.State), MaxState)
	}
	if w.workers < 0 || o.Layout > LayoutPacked || o.Sync > SyncNone {
		return invalidf("%d workers, %v, sync policy %d", w.workers, o.Layout, o.Sync)
	}
	if w.workers == 0 {
		w.workers = max(2, runtime.GOMAXPROCS(0))
	}
	h := &w.h
	h.version, h.created, h.chunkSize = Version, time.Now().UnixNano(), uint32(o.ChunkSize)
	var err error
	if h.codecID, h.codecName, err = codecIdentity(o.Codec); err != nil {
		return err
	}
	if _, err := rand.Read(h.nonce[:]); err != nil {
		return err
	}
	switch {
	case o.Layout == LayoutRaw && (o.Codec != nil || o.Parent != nil):
		return invalidf("a raw file is full and has no codec")
	case o.Layout != LayoutPacked && o.Codec == nil && o.Parent == nil:
		h.flags |= flagRaw
	}
	if err := w.layOut(); err != nil {
		return err
	}
	if o.Parent != nil {
		return w.attach(o.Parent, path)
	}
	return nil
}

// layOut takes over the regions.
func (w *writer) layOut() error {
	list := slices.Clone(w.img.Regions())
	slices.SortFunc(list, func(a, b Region) int {
		switch {
		case a.Base < b.Base:
			return -1
		case a.Base > b.Base:
			return 1
		}
		return 0
	})
	if err := checkRegions(list); err != nil {
		return err
	}
	for _, r := range list {
		w.regions = append(w.regions, table{Region: r, rawOff: headerSize + w.h.guestBytes})
		w.h.guestBytes += r.Size
	}
	w.h.nRegions = uint32(len(list))
	w.end = headerSize
	return nil
}

// attach makes the file an increment.
func (w *writer) attach(parent *File, path string) error {
	if parent.closed.Load() {
		return fmt.Errorf("%w: %w", ErrParent, ErrClosed)
	}
	if err := sameRegions(w.Regions(), parent.Regions()); err != nil {
		return err
	}
	depth := 1
	target, statErr := os.Stat(path)
	for f := parent; f != nil; f = f.parent {
		if depth++; depth > MaxChain {
			return fmt.Errorf("%w: more than %d files: %w", ErrParent, MaxChain, ErrLimit)
		}
		if statErr == nil && f.src.isFile(target) {
			return fmt.Errorf("%w: the file would replace %s, which it needs", ErrParent, f.path)
		}
	}
	recorded, err := recordedPath(path, parent.path)
	if err != nil {
		return err
	}
	w.h.flags |= flagIncrement
	w.h.parent, w.h.parentAt = parent.id, recorded
	return nil
}

// recordedPath is how an increment names its parent: from its own directory, if
// the parent is below that.
func recordedPath(path, parent string) (string, error) {
	from, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	to, err := filepath.Abs(parent)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(from, to); err == nil && filepath.IsLocal(rel) {
		to = filepath.ToSlash(rel)
	}
	if len(to) > MaxPath || bytes.ContainsRune([]byte(to), 0) {
		return "", limitf("the path of the parent has %d bytes, of at most %d", len(to), MaxPath)
	}
	return to, nil
}

func sameRegions(child, parent []Region) error {
	if slices.Equal(child, parent) {
		return nil
	}
	for i := range min(len(child), len(parent)) {
		if child[i] != parent[i] {
			return regionsf("%+v, and %+v in the parent", child[i], parent[i])
		}
	}
	return regionsf("%d, and %d in the parent", len(child), len(parent))
}

// rest writes what follows the data, and the header.
func (w *writer) rest(state []byte) error {
	h := &w.h
	h.nChunks = uint64(len(w.chunks))
	for i := range w.regions {
		t := &w.regions[i]
		h.nExtents += uint64(len(t.extents))
		h.nDataPages += t.dataPages
		h.nZeroPages += t.zeroPages
	}
	for i := range w.chunks {
		h.storedBytes += uint64(w.chunks[i].stored)
	}
	h.stateOff = w.end
	if h.raw() {
		h.stateOff = headerSize + h.guestBytes
	}
	h.stateLen, h.stateCRC = uint64(len(state)), checksum(state)
	h.tablesOff = h.stateOff + h.stateLen
	if h.nChunks > MaxChunks || h.nExtents > MaxChunks {
		return limitf("%d chunks and %d extents, of at most %d", h.nChunks, h.nExtents, uint64(MaxChunks))
	}
	if err := w.out.write(state, h.stateOff); err != nil {
		return err
	}
	var err error
	if h.tablesCRC, err = w.tables.write(h.tablesOff, w.out.write); err != nil {
		return err
	}
	h.fileSize = h.tablesOff + h.tablesLen()
	page := h.encode()
	if _, w.id, err = decodeHeader(page, h.fileSize); err != nil {
		return errors.Join(errors.New("snapfile: wrote a header that it would not read"), err)
	}
	return w.out.write(page, 0)
}

func (w *writer) info(path string, o Options) Info {
	info := describe(path, w.id, &w.h, &w.tables)
	if o.Parent != nil {
		parent := o.Parent.Info()
		info.Parent = &parent
	}
	return info
}

// Regions returns the regions in ascending order.
func (t *tables) Regions() []Region {
	list := make([]Region, len(t.regions))
	for i := range list {
		list[i] = t.regions[i].Region
	}
	return list
}

// span is a run of pages of a region.
type span struct{ first, n uint64 }

func (s span) end() uint64 { return s.first + s.n }

func (s span) bytes() uint64 { return s.n * addr.PageSize }
