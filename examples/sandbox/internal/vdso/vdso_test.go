package vdso

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// What C libraries and Go's runtime look for: one segment, nothing to relocate,
// symbols with the version LINUX_2.6, both kinds of hash tables.
func TestShape(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(ELF))
	if err != nil {
		t.Fatal(err)
	}
	if len(ELF) > 4096-8 || f.Type != elf.ET_DYN || f.Machine != elf.EM_X86_64 {
		t.Errorf("%d bytes, %v, %v", len(ELF), f.Type, f.Machine)
	}
	loads := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		loads++
		if p.Off != 0 || p.Vaddr != 0 || p.Memsz != p.Filesz || p.Flags != elf.PF_R|elf.PF_X {
			t.Errorf("segment %+v", p.ProgHeader)
		}
	}
	if loads != 1 {
		t.Errorf("%d segments", loads)
	}
	for _, tag := range []elf.DynTag{elf.DT_HASH, elf.DT_GNU_HASH, elf.DT_VERSYM, elf.DT_VERDEF, elf.DT_SYMTAB, elf.DT_STRTAB} {
		if v, err := f.DynValue(tag); err != nil || len(v) != 1 {
			t.Errorf("%v: %v, %v", tag, v, err)
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_RELA, elf.DT_REL, elf.DT_JMPREL, elf.DT_NEEDED, elf.DT_TEXTREL} {
		if v, _ := f.DynValue(tag); len(v) != 0 {
			t.Errorf("%v: %v", tag, v)
		}
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, s := range symbols {
		versions[s.Name] = s.Version
	}
	for _, name := range []string{"__vdso_clock_gettime", "__vdso_clock_getres", "__vdso_gettimeofday", "__vdso_time", "__vdso_getcpu"} {
		if versions[name] != "LINUX_2.6" {
			t.Errorf("%s has version %q", name, versions[name])
		}
	}
}

// The kept bytes do what the source says: both are called from one program and
// compared, and with what should come out.
func TestBytesMatchSource(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("the object is for Linux on x86-64; run the test there")
	}
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc: the bytes cannot be compared with their source; install gcc")
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Skipf("%s %v: %v: %s; it needs a gcc for x86-64, and make", name, args, err, out)
		}
		return string(out)
	}
	for _, name := range []string{"Makefile", "internal/vdso/src/vdso.c", "internal/vdso/src/vdso.lds"} {
		raw, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, raw, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	run("make", "-B", "-C", dir, "CC="+cc, "vdso")
	harness := filepath.Join(dir, "harness")
	run(cc, "-O1", "-o", harness, "testdata/harness.c")
	kept, built := run(harness, "vdso.so"), run(harness, filepath.Join(dir, "internal/vdso/vdso.so"))
	if kept != built {
		t.Errorf("kept:\n%sbuilt:\n%s", kept, built)
	}
	for _, line := range []string{
		"0: 0 1700000000 0\n", "1: 0 123456789 12345678\n", "day 0 1700000000 0 0 0\n", "time 1700000000 1700000000 1700000000\n",
		"0: 0 1 0\n", "1: 0 0 999999999\n", "0: 0 1 77\n", "rate 1\n", "fallback 1 1\n", "rest 0 0 1\n",
	} {
		if !bytes.Contains([]byte(kept), []byte(line)) {
			t.Errorf("no line %q in\n%s", line, kept)
		}
	}
}
