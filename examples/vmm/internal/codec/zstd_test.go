package codec

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
)

func TestZstd(t *testing.T) {
	z, err := NewZstd()
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 1<<16)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	for name, src := range map[string][]byte{
		"text": bytes.Repeat([]byte("guest memory "), 5000), "random": random, "a page": make([]byte, 4096),
		"the largest chunk": make([]byte, snapfile.MaxChunk),
	} {
		enc, err := z.Encode([]byte("before"), src)
		if err != nil || !bytes.HasPrefix(enc, []byte("before")) {
			t.Fatalf("%s: %v", name, err)
		}
		dst := append(make([]byte, 0, 5+len(src)), "there"...)
		got, err := z.Decode(dst, enc[6:])
		if err != nil || !bytes.Equal(got, append([]byte("there"), src...)) {
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(got), len(src))
		}
		if _, err := z.Decode(make([]byte, 0, len(src)), enc[6:len(enc)-2]); err == nil {
			t.Errorf("%s: a frame without its end was decoded", name)
		}
	}
}

// TestZstdBomb: what becomes more than there is room for is an error, not memory.
func TestZstdBomb(t *testing.T) {
	z, err := NewZstd()
	if err != nil {
		t.Fatal(err)
	}
	bomb, err := z.Encode(nil, make([]byte, 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := z.Decode(make([]byte, 0, 64<<10), bomb); err == nil {
		t.Errorf("%d bytes were decoded into room for %d", len(got), 64<<10)
	}
}
