package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The blob that describes a guest to who takes it over, little-endian:
//
//	8   "GMMTAKE1"
//	32  identity of the image
//	8   1 if the kernel tells of removals
//	8 n name
//	8   number of regions; for each: start, size, offset, page size, mode,
//	    arming (8 each); then its states, as (uvarint words, 4 word) until all
//	    of them are there
//	8   number of spans; for each: start, region, first page, pages (8 each)
//	8   number of ranges to be woken; for each: start, end (8 each)
//	8   number of ranges left by moves, that the kernel has yet to tell as unmapped;
//	    for each: start, end (8 each)
//	4   CRC-32C of all before it
const takeoverMagic = "GMMTAKE1"

// maxTakeoverPages bounds what a blob can make us allocate: 4 TiB of small
// pages take 512 MiB.
const maxTakeoverPages = 1 << 30

// encode describes the guest. Nobody serves it.
func (t *Takeover) encode() []byte {
	var b bytes.Buffer
	var num [binary.MaxVarintLen64]byte
	put := func(vs ...uint64) {
		for _, v := range vs {
			b.Write(binary.LittleEndian.AppendUint64(num[:0], v))
		}
	}
	l := t.l
	b.WriteString(takeoverMagic)
	b.Write(t.image[:])
	removals := uint64(0)
	if l.removals {
		removals = 1
	}
	put(removals, uint64(len(l.name)))
	b.WriteString(l.name)
	put(uint64(len(l.regions)))
	for _, r := range l.regions {
		put(uint64(r.Start), r.Size, r.Offset, r.PageSize, uint64(r.Mode), uint64(r.Arming))
		r.pages.encode(&b)
	}
	spans := l.layout.Load().spans
	put(uint64(len(spans)))
	for _, s := range spans {
		put(uint64(s.start), uint64(s.r.index), uint64(s.first), uint64(s.n))
	}
	for _, ranges := range [][]addrRange{l.wakes, l.vacant} {
		put(uint64(len(ranges)))
		for _, r := range ranges {
			put(uint64(r.start), uint64(r.end))
		}
	}
	b.Write(binary.LittleEndian.AppendUint32(num[:0], crc32.Checksum(b.Bytes(), castagnoli)))
	return b.Bytes()
}

func (p *pages) encode(b *bytes.Buffer) {
	var num [binary.MaxVarintLen64]byte
	for i := 0; i < p.nWords(); {
		w, n := p.look(i).Load(), 1
		for i+n < p.nWords() && p.look(i+n).Load() == w {
			n++
		}
		b.Write(binary.AppendUvarint(num[:0], uint64(n)))
		b.Write(binary.LittleEndian.AppendUint32(num[:0], w))
		i += n
	}
}

func (p *pages) decode(in *blobReader) {
	for i := 0; i < p.nWords() && in.err == nil; {
		n, w := in.uvarint(), in.uint32()
		if n == 0 || n > uint64(p.nWords()-i) {
			in.fail(fmt.Errorf("%d words of states where %d are left", n, p.nWords()-i))
			return
		}
		for range n {
			if w != 0 { // absent pages take no room
				p.word(i).Store(w)
			}
			i++
		}
	}
	p.recover()
	p.recount()
}

// decodeTakeover checks a blob and makes a guest of it, for k to be its
// descriptor.
//
// Errors: ErrHandover with what is wrong.
func decodeTakeover(blob []byte) (*Takeover, error) {
	t, err := decodeBlob(blob)
	if err != nil {
		return nil, &Error{Op: "take over", Err: because(ErrHandover, err)}
	}
	return t, nil
}

func decodeBlob(blob []byte) (*Takeover, error) {
	if len(blob) < len(takeoverMagic)+4 || string(blob[:8]) != takeoverMagic {
		return nil, errors.New("not a guest's description")
	}
	body, sum := blob[:len(blob)-4], binary.LittleEndian.Uint32(blob[len(blob)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("checksum %#x, want %#x", sum, got)
	}
	in := &blobReader{b: body[8:]}
	t := &Takeover{l: &ledger{served: true}}
	copy(t.image[:], in.take(32))
	t.l.removals = in.uint64() != 0
	t.l.name = string(in.take(in.uint64()))
	in.regions(t.l)
	in.spans(t.l)
	t.l.wakes = in.ranges("to be woken")
	if t.l.vacant = in.ranges("left by a move"); len(t.l.vacant) > maxVacant {
		in.fail(fmt.Errorf("%d ranges left by moves, want %d at most", len(t.l.vacant), maxVacant))
	}
	if in.err == nil && len(in.b) > 0 {
		in.fail(fmt.Errorf("%d bytes after its end", len(in.b)))
	}
	return t, in.err
}

// A blobReader takes fields off a blob. After a failure it gives zeroes.
type blobReader struct {
	b   []byte
	err error
}

func (in *blobReader) fail(err error) {
	if in.err == nil {
		in.err = err
	}
	in.b = nil
}

func (in *blobReader) take(n uint64) []byte {
	if n > uint64(len(in.b)) {
		in.fail(errors.New("cut short"))
		return nil
	}
	out := in.b[:n]
	in.b = in.b[n:]
	return out
}

func (in *blobReader) uint64() uint64 {
	if b := in.take(8); len(b) == 8 {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (in *blobReader) uint32() uint32 {
	if b := in.take(4); len(b) == 4 {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (in *blobReader) uvarint() uint64 {
	v, n := binary.Uvarint(in.b)
	if n <= 0 {
		in.fail(errors.New("cut short"))
		return 0
	}
	in.b = in.b[n:]
	return v
}

// count reads how many items of at least size bytes follow.
func (in *blobReader) count(size uint64) uint64 {
	n := in.uint64()
	if n > uint64(len(in.b))/size {
		in.fail(fmt.Errorf("%d items in %d bytes", n, len(in.b)))
		return 0
	}
	return n
}

func (in *blobReader) ranges(what string) (out []addrRange) {
	for range in.count(2 * 8) {
		r := addrRange{addr.HVA(in.uint64()), addr.HVA(in.uint64())}
		if r.end <= r.start {
			in.fail(fmt.Errorf("range %v %s", r, what))
		}
		out = append(out, r)
	}
	return out
}

func (in *blobReader) regions(l *ledger) {
	n, total := in.count(6*8), uint64(0)
	var list []Region
	for i := range n {
		r := Region{
			Start: addr.HVA(in.uint64()), Size: in.uint64(), Offset: in.uint64(), PageSize: in.uint64(),
			Mode: Mode(min(in.uint64(), 255)), Arming: Arming(min(in.uint64(), 255)),
		}
		if err := r.check(^uint64(0)); err != nil || in.err != nil {
			in.fail(fmt.Errorf("region %v: %w", r, err))
			return
		}
		if total += r.Size / r.PageSize; total > maxTakeoverPages {
			in.fail(fmt.Errorf("more than %d pages", uint64(maxTakeoverPages)))
			return
		}
		list = append(list, r)
		nr := newRegion(r, int(i))
		nr.pages.decode(in)
		l.regions = append(l.regions, nr)
	}
	if len(list) == 0 {
		in.fail(errors.New("no regions"))
	}
}

// spans reads where the pages are. No page is in two places, and no two are in
// one.
func (in *blobReader) spans(l *ledger) {
	var spans []span
	for i := range in.count(4 * 8) {
		start, index, first, n := in.uint64(), in.uint64(), in.uint64(), in.uint64()
		if in.err != nil || index >= uint64(len(l.regions)) {
			in.fail(fmt.Errorf("span %d of region %d", i, index))
			return
		}
		r := l.regions[index]
		nPages := uint64(r.pages.n)
		if n == 0 || n > nPages || first > nPages-n || start%r.PageSize != 0 || start == 0 || start+r.bytes(int(n)) < start {
			in.fail(fmt.Errorf("span %d: pages [%d, +%d) of %d at %#x", i, first, n, nPages, start))
			return
		}
		spans = append(spans, span{addr.HVA(start), r, int(first), int(n)})
	}
	if in.err != nil {
		return
	}
	layout := newLayout(spans, len(l.regions))
	for i := range layout.spans[min(1, len(spans)):] {
		if layout.spans[i].end() > layout.spans[i+1].start {
			in.fail(errors.New("spans overlap"))
			return
		}
	}
	for _, of := range layout.ofRegion {
		for i := range of[min(1, len(of)):] {
			if of[i].first+of[i].n > of[i+1].first {
				in.fail(errors.New("a page is in two places"))
				return
			}
		}
	}
	l.layout.Store(layout)
}
