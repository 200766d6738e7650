package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The file of a working set, little-endian:
//
//	8   "GMMWSET1"
//	32  identity of the image
//	8   pages of the image
//	8   number of runs
//	    for each run, in order of first touch:
//	      varint   first page, less the end of the run before it (zigzag)
//	      uvarint  number of pages
//	4   CRC-32C of all before it
//
// and nothing after that.
const workingSetMagic = "GMMWSET1"

// maxImagePages is the longest image that a file may speak of: 4 EiB.
const maxImagePages = 1 << 50

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteTo writes the set in its file format.
func (ws *WorkingSet) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	b.WriteString(workingSetMagic)
	b.Write(ws.Image[:])
	var num [binary.MaxVarintLen64]byte
	put := func(v uint64) { b.Write(binary.LittleEndian.AppendUint64(num[:0], v)) }
	put(ws.Pages)
	put(uint64(len(ws.Runs)))
	last := uint64(0)
	for _, r := range ws.Runs {
		b.Write(binary.AppendVarint(num[:0], int64(r.First-last)))
		b.Write(binary.AppendUvarint(num[:0], r.N))
		last = r.First + r.N
	}
	b.Write(binary.LittleEndian.AppendUint32(num[:0], crc32.Checksum(b.Bytes(), castagnoli)))
	n, err := w.Write(b.Bytes())
	return int64(n), err
}

// ReadWorkingSet reads a set from its file format. It believes nothing: what is
// damaged, cut short, too long, or overlaps is ErrWorkingSet, and it takes no
// more memory than a few times the length of the file.
func ReadWorkingSet(r io.Reader) (*WorkingSet, error) {
	head := make([]byte, workingSetHead)
	if n, err := io.ReadFull(r, head); err != nil {
		if isAny(err, io.EOF, io.ErrUnexpectedEOF) {
			err = because(ErrWorkingSet, fmt.Errorf("%w after %d bytes", io.ErrUnexpectedEOF, n))
		}
		return nil, &Error{Op: "read working set", Err: err}
	}
	nRuns, err := decodeHead(head)
	var body []byte
	if err == nil {
		// What is longer is wrong, and not read.
		most := int64(min(nRuns, maxImagePages)*2*binary.MaxVarintLen64 + crc32.Size + 1)
		if body, err = io.ReadAll(io.LimitReader(r, most)); err != nil {
			return nil, &Error{Op: "read working set", Err: err}
		}
	}
	var ws *WorkingSet
	if err == nil {
		ws, err = decodeWorkingSet(head, body)
	}
	if err != nil {
		return nil, &Error{Op: "read working set", Err: because(ErrWorkingSet, err)}
	}
	return ws, nil
}

const workingSetHead = len(workingSetMagic) + len(Identity{}) + 8 + 8

func decodeHead(b []byte) (nRuns uint64, err error) {
	if magic := b[:len(workingSetMagic)]; string(magic) != workingSetMagic {
		return 0, fmt.Errorf("it begins with %q, want %q", magic, workingSetMagic)
	}
	pages, nRuns := binary.LittleEndian.Uint64(b[len(b)-16:]), binary.LittleEndian.Uint64(b[len(b)-8:])
	if pages > maxImagePages || nRuns > pages {
		return 0, fmt.Errorf("%d runs in an image of %d pages", nRuns, pages)
	}
	return nRuns, nil
}

// decodeWorkingSet makes a set of its file. The head is acceptable.
func decodeWorkingSet(head, b []byte) (*WorkingSet, error) {
	if len(b) < crc32.Size {
		return nil, io.ErrUnexpectedEOF
	}
	body, sum := b[:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	got := crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, body)
	if want := binary.LittleEndian.Uint32(sum); got != want {
		return nil, fmt.Errorf("checksum %#x, want %#x", got, want)
	}
	nRuns := binary.LittleEndian.Uint64(head[len(head)-8:])
	if nRuns > uint64(len(body)/2) { // each takes two bytes at least
		return nil, fmt.Errorf("%d runs in %d bytes", nRuns, len(body))
	}
	ws := &WorkingSet{Pages: binary.LittleEndian.Uint64(head[len(head)-16:])}
	copy(ws.Image[:], head[len(workingSetMagic):])
	ws.Runs = make([]PageRun, nRuns)
	last := int64(0)
	for i := range ws.Runs {
		delta, k := binary.Varint(body)
		if k <= 0 {
			return nil, io.ErrUnexpectedEOF
		}
		n, l := binary.Uvarint(body[k:])
		if l <= 0 {
			return nil, io.ErrUnexpectedEOF
		}
		body = body[k+l:]
		// Both stay far from overflow: |delta| and n are bounded by the image.
		limit := int64(ws.Pages)
		if delta < -limit || delta > limit || n == 0 || n > ws.Pages {
			return nil, fmt.Errorf("run %d: %+d, %d pages, of %d", i, delta, n, ws.Pages)
		}
		first := last + delta
		if first < 0 || first+int64(n) > limit {
			return nil, fmt.Errorf("run %d: [%d, +%d) of %d pages", i, first, n, ws.Pages)
		}
		ws.Runs[i] = PageRun{uint64(first), n}
		last = first + int64(n)
	}
	switch {
	case len(body) > 0:
		return nil, errors.New("it goes on after its end")
	case !areDisjoint(ws.Runs):
		return nil, errOverlapping
	}
	return ws, nil
}
