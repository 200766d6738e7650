package pager

import (
	"bufio"
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
	in := &summingReader{r: bufio.NewReader(r)}
	ws, err := in.workingSet()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, &Error{Op: "read working set", Err: because(ErrWorkingSet, err)}
	}
	return ws, nil
}

// A summingReader computes the checksum of what it hands out.
type summingReader struct {
	r   *bufio.Reader
	sum uint32
}

func (in *summingReader) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.sum = crc32.Update(in.sum, castagnoli, p[:n])
	return n, err
}

func (in *summingReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(in, b[:])
	return b[0], err
}

func (in *summingReader) workingSet() (*WorkingSet, error) {
	var head struct {
		Magic       [8]byte
		Image       Identity
		Pages, Runs uint64
	}
	if err := binary.Read(in, binary.LittleEndian, &head); err != nil {
		return nil, err
	}
	switch {
	case string(head.Magic[:]) != workingSetMagic:
		return nil, fmt.Errorf("it begins with %q, want %q", head.Magic, workingSetMagic)
	case head.Pages > maxImagePages || head.Runs > head.Pages:
		return nil, fmt.Errorf("%d runs in an image of %d pages", head.Runs, head.Pages)
	}
	ws := &WorkingSet{Image: head.Image, Pages: head.Pages}
	last := int64(0)
	for i := range head.Runs {
		delta, err := binary.ReadVarint(in)
		if err != nil {
			return nil, err
		}
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return nil, err
		}
		// Both stay far from overflow: |delta| and n are bounded by the image.
		limit := int64(head.Pages)
		if delta < -limit || delta > limit || n == 0 || n > head.Pages {
			return nil, fmt.Errorf("run %d: %+d, %d pages, of %d", i, delta, n, head.Pages)
		}
		first := last + delta
		if first < 0 || first+int64(n) > limit {
			return nil, fmt.Errorf("run %d: [%d, +%d) of %d pages", i, first, n, head.Pages)
		}
		ws.Runs = append(ws.Runs, PageRun{uint64(first), n})
		last = first + int64(n)
	}
	want := in.sum
	var sum [4]byte
	if _, err := io.ReadFull(in, sum[:]); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint32(sum[:]); got != want {
		return nil, fmt.Errorf("checksum %#x, want %#x", got, want)
	}
	if _, err := in.r.ReadByte(); err == nil {
		return nil, errors.New("it goes on after its end")
	}
	if !areDisjoint(ws.Runs) {
		return nil, errOverlapping
	}
	return ws, nil
}
