package pagetable

import (
	"reflect"
	"testing"
)

// A walk loads the arena and the root. A change takes the mutexes, and if they lay on
// the same line, each change would cost each reader a miss in every read.
func TestWalksShareNoLineWithChanges(t *testing.T) {
	typ := reflect.TypeFor[Table]()
	if typ.Size()%lineBytes != 0 {
		t.Errorf("a Table has %d bytes: it is not aligned to lines", typ.Size())
	}
	line := func(name string) (first, last uintptr) {
		f, ok := typ.FieldByName(name)
		if !ok {
			t.Fatalf("there is no field %s", name)
		}
		return f.Offset / lineBytes, (f.Offset + f.Type.Size() - 1) / lineBytes
	}
	_, loaded := line("root")
	if first, _ := line("arena"); first != loaded {
		t.Errorf("a walk loads lines %d to %d", first, loaded)
	}
	for _, name := range []string{"tables", "scratch", "changes"} {
		// Pairs of lines are fetched together.
		if first, _ := line(name); first <= loaded+1 {
			t.Errorf("%s is on line %d, and what a walk loads on %d", name, first, loaded)
		}
	}
}
