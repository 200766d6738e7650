package handshake

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const two = `[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096},
 {"base_host_virt_addr":18446744073709547520,"size":1,"offset":7,"page_size_kib":2097152,"new":{"a":["]"]}}]`

var wantTwo = []Mapping{{4096, 8192, 0, 4096}, {18446744073709547520, 1, 7, 2097152}}

// assemble feeds a message in pieces of n bytes.
func assemble(message string, n int) (*assembler, error) {
	var a assembler
	for len(message) > 0 {
		k := min(n, len(message))
		if err := a.add([]byte(message[:k])); err != nil {
			return &a, err
		}
		message = message[k:]
	}
	return &a, nil
}

// Page sizes are bytes under both names; where the older one has what can only be
// KiB, it is that.
func TestPageSizes(t *testing.T) {
	for members, want := range map[string]uint64{
		`"page_size":4096,"page_size_kib":4096`:    4096,
		`"page_size":2097152,"page_size_kib":4`:    2 << 20,
		`"page_size_kib":4096`:                     4096,
		`"page_size_kib":2097152`:                  2 << 20,
		`"page_size_kib":4`:                        4096,
		`"page_size_kib":2048`:                     2 << 20,
		`"page_size_kib":1048576`:                  1 << 20, // refused later, as bytes
		`"page_size":4,"page_size_kib":4096`:       4,
		`"page_size":null,"page_size_kib":4`:       4096,
		`"other":{"page_size":1},"page_size":4096`: 4096,
		`"other":[]`:                               0,
	} {
		got, err := Parse([]byte(`[{"base_host_virt_addr":0,"size":1,"offset":2,` + members + `}]`))
		if err != nil || len(got) != 1 || got[0].PageSize != want {
			t.Errorf("%s: %+v, %v; want pages of %d", members, got, err, want)
		}
	}
}

// A message means the same however it is cut, and ends where its array does.
func TestMessageInPieces(t *testing.T) {
	for name, m := range map[string]string{
		"plain":          two,
		"white before":   " \n\t" + two,
		"something else": two + "trailing",
		"with a line":    fmt.Sprintf("12 34 %d\n%s", len(two), two),
	} {
		for n := 1; n <= len(m); n++ {
			a, err := assemble(m, n)
			if err != nil || !a.whole() {
				t.Fatalf("%s in pieces of %d: whole: %v, %v", name, n, a.whole(), err)
			}
			got, err := Parse(a.array())
			if err != nil {
				t.Fatalf("%s in pieces of %d: %v", name, n, err)
			}
			if !slices.Equal(got, wantTwo) {
				t.Fatalf("%s in pieces of %d: %+v, want %+v", name, n, got, wantTwo)
			}
			if hasClaim := a.claim != nil; hasClaim != (name == "with a line") || hasClaim && *a.claim != (Claim{12, 34}) {
				t.Fatalf("%s in pieces of %d: claim %v", name, n, a.claim)
			}
		}
	}
}

// Until the last byte has come a message is not whole.
func TestMessageThatLacksItsEnd(t *testing.T) {
	for _, m := range []string{two, fmt.Sprintf("12 34 %d\n%s", len(two), two)} {
		for n := range len(m) {
			if a, err := assemble(m[:n], n+1); err != nil || a.whole() {
				t.Fatalf("%d of %d bytes: whole: %v, %v", n, len(m), a.whole(), err)
			}
		}
	}
}

func TestManyRegions(t *testing.T) {
	const n = 5000
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`{"base_host_virt_addr":%d,"size":4096,"offset":%d,"page_size":4096,"page_size_kib":4096}`, 1<<40+i*8192, i*4096))
	}
	a, err := assemble("["+strings.Join(all, ",")+"]", 1000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(a.array())
	if err != nil || len(got) != n || got[n-1].Offset != (n-1)*4096 {
		t.Errorf("%d regions, %v", len(got), err)
	}
}

func TestWrongMessages(t *testing.T) {
	for message, want := range map[string]error{
		"x":                            ErrMessage,
		"]":                            ErrMessage,
		`"["`:                          ErrMessage,
		"[1]":                          ErrMessage,
		"[{]]":                         ErrMessage,
		"[}":                           ErrMessage,
		"{}":                           ErrMessage,
		"[]":                           ErrMessage,
		"[null]":                       ErrMessage,
		"[{}]":                         ErrMessage,
		"1 2\n[]":                      ErrMessage,
		"1 2 3 4\n[]":                  ErrMessage,
		"1 -2 3\n[]":                   ErrMessage,
		"1 2 0\n[]":                    ErrMessage,
		"0 2 2\n[]":                    ErrMessage,
		strings.Repeat("1", 100):       ErrMessage,
		"99999999999999999999 1 1\n[]": ErrMessage,
		"1 2 1048577\n":                ErrTooLong,
		`[{"base_host_virt_addr":1,"size":2,"offset":18446744073709551616}]`: ErrMessage,
		`[{"base_host_virt_addr":1.5,"size":2,"offset":0}]`:                  ErrMessage,
		`[{"base_host_virt_addr":"1","size":2,"offset":0}]`:                  ErrMessage,
		"[" + strings.Repeat(" ", MaxMessage):                                ErrTooLong,
	} {
		a, err := assemble(message, 1<<16)
		if err == nil && a.whole() {
			_, err = Parse(a.array())
		}
		if !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", message, err, want)
		}
	}
}

// Nothing that a client may send panics, or is whole and then something else.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(two), 3)
	f.Add([]byte("12 34 5\n[{}]"), 1)
	f.Add([]byte(`[{"a":"\"]"}]`), 2)
	f.Fuzz(func(t *testing.T, m []byte, n int) {
		if n < 1 || len(m) > 1<<12 {
			return
		}
		inPieces, err1 := assemble(string(m), n)
		atOnce, err2 := assemble(string(m), len(m)+1)
		if (err1 == nil) != (err2 == nil) && !inPieces.whole() {
			t.Fatalf("in pieces %v, at once %v", err1, err2)
		}
		if err1 != nil || err2 != nil {
			return
		}
		if inPieces.whole() != atOnce.whole() {
			t.Fatalf("whole in pieces: %v, at once: %v", inPieces.whole(), atOnce.whole())
		}
		if !atOnce.whole() {
			return
		}
		if string(inPieces.array()) != string(atOnce.array()) {
			t.Fatalf("%q in pieces, %q at once", inPieces.array(), atOnce.array())
		}
		got, err := Parse(atOnce.array())
		if err == nil && len(got) == 0 {
			t.Fatal("no regions, and no error")
		}
	})
}
