//go:build linux && amd64

package kvm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// assemble returns the bytes that GNU as makes of a source, and skips t where
// there is no assembler.
func assemble(t *testing.T, source string) []byte {
	t.Helper()
	for _, tool := range []string{"as", "objcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: install binutils", err)
		}
	}
	dir := t.TempDir()
	src, obj, bin := filepath.Join(dir, "a.s"), filepath.Join(dir, "a.o"), filepath.Join(dir, "a.bin")
	if err := os.WriteFile(src, []byte(source+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"as", "--64", "-o", obj, src},
		{"objcopy", "-O", "binary", "-j", ".text", obj, bin},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	code, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func TestStubBytesMatchTheirSource(t *testing.T) {
	if got, want := stubCode(), assemble(t, stubSource); !bytes.Equal(got, want) {
		t.Errorf("stubs\n%x\nsource\n%x", got, want)
	}
}

func TestProgramBytesMatchTheirSource(t *testing.T) {
	all := []program{
		progSyscallLoop, progSyscallThenUD, progUD, progRead, progWrite, progJump, progReadPages, progSpin,
		progSpinStore, progCopy, progSelectors, progFSBase, progXMM, progZMM, progSum, progFill,
	}
	for _, h := range hostile {
		all = append(all, h.program)
	}
	mustMatchTheirSource(t, all)
	if want := probeCode; !bytes.Equal(want, progRead.bytes()) {
		t.Errorf("probeCode is %x, not progRead %x", want, progRead.code)
	}
}

// mustMatchTheirSource compares programs with what one run of the assembler makes of
// them all.
func mustMatchTheirSource(t *testing.T, all []program) {
	t.Helper()
	const align = 128
	var source bytes.Buffer
	for _, p := range all {
		fmt.Fprintf(&source, "%s\n.balign %d, 0xcc\n", p.source, align)
	}
	got := assemble(t, source.String())
	for _, p := range all {
		if !bytes.HasPrefix(got, p.bytes()) {
			t.Fatalf("bytes %x, source %.32x%s", p.code, got, p.source)
		}
		got = got[(len(p.code)+align-1)&^(align-1):]
	}
}
