//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/image"
)

// stackReader walks a stack as a program does.
type stackReader struct {
	bytes []byte
	at    uint64
}

func (r *stackReader) word() uint64 {
	v := binary.LittleEndian.Uint64(r.bytes[r.at-(stackTop-uint64(len(r.bytes))):])
	r.at += 8
	return v
}

func (r *stackReader) str(at uint64) string {
	s := string(r.bytes[at-(stackTop-uint64(len(r.bytes))):])
	return s[:strings.IndexByte(s, 0)]
}

func TestLayoutStack(t *testing.T) {
	for n := range 9 { // every alignment
		argv := []string{"prog", strings.Repeat("x", n)}
		prog := &program{image: &image.Image{Entry: 0x100, PHDR: 0x40, PHNum: 3, PositionIndependent: true}, argv: argv, env: []string{"A=1", "B="}, execfn: "/bin/prog"}
		b, err := layoutStack(prog, layout{base: pieBase})
		if err != nil {
			t.Fatal(err)
		}
		r := &stackReader{b, stackTop - uint64(len(b))}
		if r.at%16 != 0 {
			t.Errorf("rsp %#x is not aligned", r.at)
		}
		if argc := r.word(); argc != 2 {
			t.Errorf("argc %d", argc)
		}
		for _, want := range append(append(argv, ""), "A=1", "B=", "") {
			at := r.word()
			if want == "" && at != 0 && r.str(at) == "" {
				continue // an empty argument
			}
			if want == "" != (at == 0) || (at != 0 && r.str(at) != want) {
				t.Errorf("found %#x, want %q", at, want)
			}
		}
		aux := map[uint64]uint64{}
		for {
			key, value := r.word(), r.word()
			if key == atNull {
				break
			}
			aux[key] = value
		}
		if aux[atEntry] != pieBase+0x100 || aux[atPHDR] != pieBase+0x40 || aux[atPHNUM] != 3 || aux[atPageSize] != 4096 ||
			r.str(aux[atExecF]) != "/bin/prog" || r.str(aux[atPlatform]) != "x86_64" || aux[atRandom] == 0 {
			t.Errorf("auxiliary vector %#x", aux)
		}
	}
}

func TestLayoutStackIsBounded(t *testing.T) {
	for name, argv := range map[string][]string{
		"one string":   {strings.Repeat("x", maxArgString)},
		"all of them":  {strings.Repeat("x", maxArgString-1), strings.Repeat("x", maxArgString-1), strings.Repeat("y", 1)},
		"many of them": make([]string, maxArgBytes/8),
	} {
		if name == "all of them" {
			for range 15 {
				argv = append(argv, argv[0])
			}
		}
		_, err := layoutStack(&program{image: &image.Image{}, argv: argv}, layout{})
		if !errors.Is(err, unix.E2BIG) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
