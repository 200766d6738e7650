package handshake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

const (
	// MaxMessage is how long a message may be: room for some 7 000 regions.
	MaxMessage = 1 << 20
	// maxClaim is how long the line "PID FD BYTES" may be.
	maxClaim = 64
)

// A Mapping is one region, as the client says; nothing is checked but that it
// is there.
type Mapping struct {
	Start    uint64 // in the client's memory
	Size     uint64
	Offset   uint64 // in the memory file
	PageSize uint64 // in bytes; 0 if the client does not say
}

// A Claim is the line that some VMMs begin with: process PID has the userfaultfd
// as its descriptor FD.
type Claim struct {
	PID int
	FD  int
}

// An assembler finds where a message ends that comes in pieces. It looks at
// each byte once, however small the pieces are.
type assembler struct {
	buf   []byte
	claim *Claim
	begin int // of the array
	end   int // behind the array; 0 while that is not known

	at      int // looked at so far
	length  int // of the array, if a claim has said so
	depth   int
	quoted  bool
	escaped bool
}

// add takes the next piece. What follows the message is dropped: a descriptor
// that comes later needs at least a byte to come with.
func (a *assembler) add(p []byte) error {
	if a.end > 0 {
		return nil
	}
	if len(a.buf)+len(p) > MaxMessage {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLong, MaxMessage)
	}
	a.buf = append(a.buf, p...)
	return a.look()
}

func (a *assembler) whole() bool { return a.end > 0 }

func (a *assembler) look() error {
	if a.at == 0 && len(a.buf) > 0 && a.buf[0] >= '0' && a.buf[0] <= '9' {
		if ok, err := a.lookAtClaim(); !ok {
			return err
		}
	}
	if a.length > 0 {
		if len(a.buf)-a.begin >= a.length {
			a.end = a.begin + a.length
		}
		return nil
	}
	for ; a.at < len(a.buf) && a.end == 0; a.at++ {
		if err := a.step(a.buf[a.at]); err != nil {
			return err
		}
	}
	return nil
}

func (a *assembler) step(c byte) error {
	switch {
	case a.escaped:
		a.escaped = false
	case a.quoted:
		a.escaped, a.quoted = c == '\\', c != '"'
	case c == '[' || c == '{':
		if a.depth == 0 {
			a.begin = a.at
		}
		a.depth++
	case a.depth == 0 && !strings.ContainsRune(" \t\r\n", rune(c)):
		return fmt.Errorf("%w: it begins with %q, want a JSON array", ErrMessage, c)
	case c == ']' || c == '}':
		if a.depth--; a.depth == 0 {
			a.end = a.at + 1
		}
	case c == '"':
		a.quoted = true
	}
	return nil
}

// lookAtClaim reads the first line once it is there.
func (a *assembler) lookAtClaim() (bool, error) {
	line, _, found := bytes.Cut(a.buf[:min(len(a.buf), maxClaim)], []byte("\n"))
	if !found {
		if len(a.buf) >= maxClaim {
			return false, fmt.Errorf("%w: it begins with a number, and no line PID FD BYTES", ErrMessage)
		}
		return false, nil
	}
	fields := strings.Fields(string(line))
	var n [3]int
	for i := range n {
		var err error
		if len(fields) != len(n) {
			err = strconv.ErrSyntax
		} else {
			n[i], err = strconv.Atoi(fields[i])
		}
		if err != nil || n[i] < 0 {
			return false, fmt.Errorf("%w: its first line is %q, want PID FD BYTES", ErrMessage, line)
		}
	}
	if n[0] == 0 || n[2] == 0 {
		return false, fmt.Errorf("%w: its first line is %q", ErrMessage, line)
	}
	a.claim, a.begin, a.length = &Claim{n[0], n[1]}, len(line)+1, n[2]
	a.at = a.begin
	if a.length > MaxMessage-a.begin {
		return false, fmt.Errorf("%w: its first line says %d bytes", ErrTooLong, a.length)
	}
	return true, nil
}

// array returns the JSON array of a whole message.
func (a *assembler) array() []byte { return a.buf[a.begin:a.end] }

// mappingJSON is an element. Members that must be there are pointers.
type mappingJSON struct {
	Start       *uint64 `json:"base_host_virt_addr"`
	Size        *uint64 `json:"size"`
	Offset      *uint64 `json:"offset"`
	PageSize    uint64  `json:"page_size"`
	PageSizeKiB uint64  `json:"page_size_kib"` // in bytes as a rule, whatever its name says
}

// Parse reads the array. Members that it does not know are ignored.
//
// Errors: ErrMessage.
func Parse(array []byte) ([]Mapping, error) {
	var in []mappingJSON
	if err := json.Unmarshal(array, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if len(in) == 0 {
		return nil, fmt.Errorf("%w: no regions", ErrMessage)
	}
	out := make([]Mapping, len(in))
	for i, m := range in {
		if m.Start == nil || m.Size == nil || m.Offset == nil {
			return nil, fmt.Errorf("%w: region %d lacks base_host_virt_addr, size or offset", ErrMessage, i)
		}
		out[i] = Mapping{*m.Start, *m.Size, *m.Offset, m.pageSize()}
	}
	return out, nil
}

// pageSize returns the page size in bytes. No page has 4 bytes, nor 2048: who says
// that in page_size_kib means what the name says.
func (m *mappingJSON) pageSize() uint64 {
	switch {
	case m.PageSize != 0:
		return m.PageSize
	case m.PageSizeKiB == 4 || m.PageSizeKiB == 2048:
		return m.PageSizeKiB << 10
	}
	return m.PageSizeKiB
}
