// Package codec has the codecs of snapshot files.
package codec

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/guestmm/guestmm/cow/snapfile"
)

// zstdID is zstd's number in snapshot files.
const zstdID = 0x7a737464

// Zstd makes chunks smaller by Zstandard.
type Zstd struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

var _ snapfile.Codec = (*Zstd)(nil)

// NewZstd returns a codec that is fast rather than thorough, and decodes nothing
// that needs more than a chunk.
func NewZstd() (*Zstd, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	// The output is bounded by what Decode is given room for; this bounds what a frame
	// that somebody has made up may ask for before that.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(snapfile.MaxChunk), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &Zstd{enc: enc, dec: dec}, nil
}

// ID implements snapfile.Codec.
func (*Zstd) ID() uint32 { return zstdID }

// Name implements snapfile.Codec.
func (*Zstd) Name() string { return "zstd" }

// Encode implements snapfile.Codec.
func (z *Zstd) Encode(dst, src []byte) ([]byte, error) { return z.enc.EncodeAll(src, dst), nil }

// Decode implements snapfile.Codec.
func (z *Zstd) Decode(dst, src []byte) ([]byte, error) {
	out, err := z.dec.DecodeAll(src, dst)
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return out, nil
}

// All are the codecs that a file may need.
func All() ([]snapfile.Codec, error) {
	z, err := NewZstd()
	if err != nil {
		return nil, err
	}
	return []snapfile.Codec{z}, nil
}
