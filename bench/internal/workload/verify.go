package workload

import (
	"bytes"
	"fmt"
)

// Verify checks that what is to be measured also works: data stays, what is
// unmapped or protected is refused, discarded pages are empty, and neither
// side of a fork sees what the other writes. A figure of a subject that fails
// it means nothing.
func Verify(sub Subject) (err error) {
	s, err := sub.NewSpace()
	if err != nil {
		return err
	}
	v := verifier{s: s}
	v.data()
	v.refusals()
	v.discard()
	v.fork()
	if err := s.Close(); err != nil {
		v.fail("close: %v", err)
	}
	return v.err
}

// verifier keeps the first thing that was wrong.
type verifier struct {
	s   Space
	err error
}

func (v *verifier) fail(format string, args ...any) {
	if v.err == nil {
		v.err = fmt.Errorf("workload: verify: "+format, args...)
	}
}

const verifySize = 8 * PageSize

// mapped returns the address of new read-write memory.
func (v *verifier) mapped() uint64 {
	at, err := v.s.Map(verifySize, Read|Write)
	if err != nil {
		v.fail("map: %v", err)
	}
	return at
}

// write and read copy across the middle of a page.
func (v *verifier) write(s Space, at uint64, text string) error {
	c, err := s.NewCopier(Owned)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.WriteEach([]uint64{at + PageSize - 4}, []byte(text))
}

func (v *verifier) read(s Space, kind CopierKind, at uint64, n int) ([]byte, error) {
	c, err := s.NewCopier(kind)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p := make([]byte, n)
	return p, c.ReadEach([]uint64{at + PageSize - 4}, p)
}

func (v *verifier) wants(s Space, at uint64, what, text string) {
	for _, kind := range []CopierKind{Owned, Pooled} {
		got, err := v.read(s, kind, at, len(text))
		if err != nil || !bytes.Equal(got, []byte(text)) {
			v.fail("%s: read %q, %v, want %q", what, got, err, text)
		}
	}
}

const (
	empty  = "\x00\x00\x00\x00\x00\x00\x00\x00"
	first  = "first---"
	second = "second--"
)

func (v *verifier) data() {
	at := v.mapped()
	v.wants(v.s, at, "new memory", empty)
	if err := v.write(v.s, at, first); err != nil {
		v.fail("write: %v", err)
	}
	v.wants(v.s, at, "after a write", first)
	if err := v.s.Fault(at + 4*PageSize); err != nil {
		v.fail("fault: %v", err)
	}
	if err := v.s.MapAt(at, verifySize, Read|Write); err != nil {
		v.fail("map in place: %v", err)
	}
	v.wants(v.s, at, "after a map in its place", empty)
}

func (v *verifier) refusals() {
	at := v.mapped()
	if err := v.s.Protect(at, verifySize, Read); err != nil {
		v.fail("protect: %v", err)
	}
	if v.write(v.s, at, first) == nil {
		v.fail("a write to read-only memory passed")
	}
	if v.s.Fault(at) == nil {
		v.fail("a write fault on read-only memory was resolved")
	}
	if err := v.s.Unmap(at, verifySize); err != nil {
		v.fail("unmap: %v", err)
	}
	if _, err := v.read(v.s, Owned, at, 8); err == nil {
		v.fail("a read of unmapped memory passed")
	}
}

func (v *verifier) discard() {
	at := v.mapped()
	if err := v.write(v.s, at, first); err != nil {
		v.fail("write: %v", err)
	}
	if err := v.s.Discard(at, verifySize); err != nil {
		v.fail("discard: %v", err)
	}
	v.wants(v.s, at, "after a discard", empty)
}

func (v *verifier) fork() {
	at := v.mapped()
	if err := v.write(v.s, at, first); err != nil {
		v.fail("write: %v", err)
	}
	child, err := v.s.Fork()
	if err != nil {
		v.fail("fork: %v", err)
		return
	}
	v.wants(child, at, "child after the fork", first)
	if err := v.write(child, at, second); err != nil {
		v.fail("child's write: %v", err)
	}
	v.wants(v.s, at, "parent after the child's write", first)
	v.wants(child, at, "child after its write", second)
	if err := v.write(v.s, at+2*PageSize, second); err != nil {
		v.fail("parent's write: %v", err)
	}
	v.wants(child, at+2*PageSize, "child after the parent's write", empty)
	if err := child.Close(); err != nil {
		v.fail("child's close: %v", err)
	}
	v.wants(v.s, at, "parent after the child's end", first)
}
