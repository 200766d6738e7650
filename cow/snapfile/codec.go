package snapfile

import "fmt"

// A Codec makes chunks smaller. The library has none but that which is no
// codec, a nil Codec; examples/vmm has one for zstd. Its methods are safe for
// concurrent use.
//
// The bytes that Decode is given are those that Encode gave: the file's
// checksums say so before it is asked. That protects from accidents. Where
// files come from somebody who means harm, a Decode that bounds its memory is
// the codec's duty: it need not give more than cap(dst)-len(dst) bytes.
type Codec interface {
	// ID is the number in the file, not 0; Name is for people, of at most
	// MaxCodecName bytes. A file is opened by the codec of its number alone.
	ID() uint32
	Name() string
	// Encode appends what src becomes to dst. A result that is not smaller is
	// thrown away, and the chunk is kept as it is.
	Encode(dst, src []byte) ([]byte, error)
	// Decode appends what src was to dst.
	Decode(dst, src []byte) ([]byte, error)
}

// codecNone is the number of no codec.
const codecNone = 0

const noneName = "none"

func codecIdentity(c Codec) (id uint32, name string, err error) {
	if c == nil {
		return codecNone, noneName, nil
	}
	id, name = c.ID(), c.Name()
	switch {
	case id == codecNone:
		return 0, "", fmt.Errorf("%w: %q has number 0, which is that of no codec", ErrCodec, name)
	case len(name) > MaxCodecName:
		return 0, "", limitf("the name of codec %q has %d bytes, of at most %d", name, len(name), MaxCodecName)
	}
	return id, name, nil
}

// findCodec picks the codec of a number.
func findCodec(codecs []Codec, id uint32, name string) (Codec, error) {
	if id == codecNone {
		return nil, nil
	}
	for _, c := range codecs {
		if c.ID() == id {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: the file is encoded by %q (number %d), and no such codec was given", ErrCodec, name, id)
}
