package guestmem

import (
	"bytes"
	"context"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// ReadCString returns the bytes from gva up to a NUL byte, without it, looking
// at no more than max bytes and at no page past the one with the NUL.
//
// Errors: ErrTooLong (ENAMETOOLONG) if there is no NUL among them; as ReadAt.
func (as *AddressSpace) ReadCString(ctx context.Context, gva addr.GVA, max int) (string, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.ReadCString(ctx, gva, max)
}

// ReadCString is AddressSpace.ReadCString.
func (a Accessor) ReadCString(ctx context.Context, gva addr.GVA, max int) (string, error) {
	const chunk = 256
	var buf [chunk]byte
	var s []byte
	for len(s) < max {
		// A piece that ends with the page never touches the next one in vain.
		at := gva + addr.GVA(len(s))
		n := min(chunk, max-len(s), int(addr.PageSize-at.PageOffset()))
		got, err := a.ReadAt(ctx, buf[:n], at)
		if end := bytes.IndexByte(buf[:got], 0); end >= 0 {
			return string(append(s, buf[:end]...)), nil
		}
		if err != nil {
			return "", err
		}
		s = append(s, buf[:got]...)
	}
	return "", opError("read string", addr.Range{Start: gva, End: gva + addr.GVA(max)}, ErrTooLong)
}
