package progress

import (
	"bytes"
	"strings"
	"testing"
)

// The bar shows the sum of who is filled, lines of the log stay whole, and the
// bar is gone when all are done.
func TestBar(t *testing.T) {
	var out bytes.Buffer
	b := New(&out)
	write := func(line string) {
		if n, err := b.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	write("before\n")
	if out.String() != "before\n" {
		t.Errorf("without a guest there is %q", out.String())
	}
	b.Update("a", 0, 100<<20)
	b.Update("b", 50<<20, 100<<20)
	out.Reset()
	write("a line of the log\n")
	if got := out.String(); !strings.Contains(got, "a line of the log\n") || !strings.Contains(got, "filling 2 guests") || !strings.Contains(got, "25%") {
		t.Errorf("after a line of the log there is %q, want the line, and then two guests at 25%%", got)
	}
	b.Remove("a")
	b.Update("b", 100<<20, 100<<20)
	b.Remove("b")
	b.Remove("c")
	out.Reset()
	write("after\n")
	if out.String() != "after\n" {
		t.Errorf("after the end there is %q", out.String())
	}
}
