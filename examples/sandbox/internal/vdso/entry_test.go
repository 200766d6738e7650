package vdso

import (
	"bytes"
	"debug/elf"
	"os/exec"
	"path/filepath"
	"testing"
)

// The kept bytes are those of the source, and lie as this package says.
func TestEntryMatchesSource(t *testing.T) {
	as, err := exec.LookPath("as")
	if err != nil {
		t.Skip("no assembler: the bytes cannot be compared with their source; install binutils")
	}
	object := filepath.Join(t.TempDir(), "entry.o")
	if out, err := exec.Command(as, "--64", "-o", object, "src/entry.s").CombinedOutput(); err != nil {
		t.Skipf("as: %v: %s; it has to be GNU as for x86-64", err, out)
	}
	f, err := elf.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := f.Section(".text").Data()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, Entry) {
		t.Errorf("entry.bin is\n%x, its source\n%x", Entry, text)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{
		"taken": EntryTaken, "commit": EntryCommit, "enabled": 4096 + EntryEnabled, "changed": 4096 + EntryChanged, "table": 4096 + EntryActions,
	}
	for _, s := range symbols {
		if at, ok := want[s.Name]; ok && s.Value != at {
			t.Errorf("%s is at %#x, not %#x", s.Name, s.Value, at)
		}
		delete(want, s.Name)
	}
	if len(want) > 0 {
		t.Errorf("no symbols %v", want)
	}
}
