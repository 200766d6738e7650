package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// build64 lays out a header, its program headers and fill bytes behind them.
func build64(t *testing.T, edit func(h *elf.Header64), fill int, progs ...elf.Prog64) []byte {
	t.Helper()
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: 0x401000,
		Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: uint16(len(progs)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	if edit != nil {
		edit(&h)
	}
	var b bytes.Buffer
	for _, v := range []any{h, progs} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	b.Write(make([]byte, fill))
	return b.Bytes()
}

func load(addr, off, filesz, memsz uint64) elf.Prog64 {
	return elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: off, Vaddr: addr, Filesz: filesz, Memsz: memsz}
}

func TestParseAccepts(t *testing.T) {
	file := build64(t, nil, 8192, load(0x400000, 0, 0x1000, 0x1000), load(0x401000, 0x1000, 0x200, 0x3000))
	im, err := Parse(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if start, end := im.Bounds(); start != 0x400000 || end != 0x404000 {
		t.Errorf("Bounds() = %#x, %#x", start, end)
	}
	if im.PHDR != 0x400040 || im.PHNum != 2 || im.PositionIndependent {
		t.Errorf("got %+v", im)
	}
}

// interp has the name of an interpreter at the end of a file of two program headers.
func interp(size uint64) elf.Prog64 {
	return elf.Prog64{Type: uint32(elf.PT_INTERP), Off: headerSize + 2*progSize, Filesz: size}
}

func TestParseFindsInterpreter(t *testing.T) {
	for _, name := range []string{"/lib64/ld.so\x00", "x\x00", "/a\x00rest\x00"} {
		file := append(build64(t, nil, 0, load(0x400000, 0, 0x40, 0x1000), interp(uint64(len(name)))), name...)
		im, err := Parse(bytes.NewReader(file), int64(len(file)))
		if want, _, _ := strings.Cut(name, "\x00"); err != nil || im.Interpreter != want {
			t.Errorf("%q: %+v, %v", name, im, err)
		}
	}
}

func TestParseRefusesInterpreter(t *testing.T) {
	for _, tt := range []struct {
		name string
		size uint64
	}{{"", 0}, {"\x00", 1}, {"/ld.so", 6}, {"\x00\x00", 2}, {"/ld.so\x00", 100}, {"/ld.so\x00", 1 << 62}, {strings.Repeat("a", 5000) + "\x00", 5001}} {
		file := append(build64(t, nil, 0, load(0x400000, 0, 0x40, 0x1000), interp(tt.size)), tt.name...)
		if im, err := Parse(bytes.NewReader(file), int64(len(file))); !errors.Is(err, ErrInterpreter) {
			t.Errorf("%.20q of %d bytes: %+v, %v", tt.name, tt.size, im, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := load(0x400000, 0, 0x100, 0x1000)
	tests := []struct {
		name string
		file []byte
		want error
	}{
		{"empty", nil, ErrNotELF},
		{"text", []byte("hello, world: this is longer than one header would be, but still only text\n"), ErrNotELF},
		{"magic only", []byte(elf.ELFMAG), ErrTruncated},
		{"half a header", build64(t, nil, 0, good)[:40], ErrTruncated},
		{"no program headers in the file", build64(t, nil, 0, good)[:headerSize], ErrTruncated},
		{"headers far away", build64(t, func(h *elf.Header64) { h.Phoff = 1 << 63 }, 0, good), ErrTruncated},
		{"32 bit", build64(t, func(h *elf.Header64) { h.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS32) }, 0, good), ErrMachine},
		{"arm64", build64(t, func(h *elf.Header64) { h.Machine = uint16(elf.EM_AARCH64) }, 0, good), ErrMachine},
		{"relocatable", build64(t, func(h *elf.Header64) { h.Type = uint16(elf.ET_REL) }, 0, good), ErrNotELF},
		{"odd header size", build64(t, func(h *elf.Header64) { h.Phentsize = 55 }, 0, good), ErrBadSegments},
		{"no headers", build64(t, nil, 64), ErrBadSegments},
		{"nothing to load", build64(t, nil, 64, elf.Prog64{Type: uint32(elf.PT_NOTE)}), ErrBadSegments},
		{"dynamic", build64(t, nil, 0x100, good, elf.Prog64{Type: uint32(elf.PT_INTERP)}), ErrInterpreter},
		{"segment behind the file", build64(t, nil, 16, load(0x400000, 0, 0x10000, 0x10000)), ErrTruncated},
		{"offset overflow", build64(t, nil, 16, load(0x400000, ^uint64(0xfff), 0x2000, 0x2000)), ErrTruncated},
		{"file above memory", build64(t, nil, 4096, load(0x400000, 0, 0x200, 0x100)), ErrBadSegments},
		{"address overflow", build64(t, nil, 4096, load(^uint64(0xfff), 0, 0x100, 0x2000)), ErrBadSegments},
		{"kernel half", build64(t, nil, 4096, load(0xffff800000000000, 0, 0x100, 0x1000)), ErrBadSegments},
		{"size overflow", build64(t, nil, 4096, load(0x400000, 0, 0x100, ^uint64(0))), ErrBadSegments},
		{"not congruent", build64(t, nil, 4096, load(0x400123, 0, 0x100, 0x1000)), ErrBadSegments},
		{"overlap", build64(t, nil, 8192, load(0x400000, 0, 0x100, 0x2000), load(0x401000, 0x1000, 0x100, 0x100)), ErrBadSegments},
		{"descending", build64(t, nil, 8192, load(0x500000, 0, 0x100, 0x1000), load(0x400000, 0x1000, 0x100, 0x100)), ErrBadSegments},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(bytes.NewReader(tt.file), int64(len(tt.file)))
			if !errors.Is(err, tt.want) {
				t.Errorf("Parse() = %v, want %v", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, file []byte) {
		im, err := Parse(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		var last uint64
		for _, s := range im.Segments {
			if s.Addr < last || s.End() < s.Addr || s.End() > MaxAddress || s.Offset+s.FileSize > uint64(len(file)) {
				t.Fatalf("accepted %+v", s)
			}
			last = s.End()
		}
	})
}

func TestScript(t *testing.T) {
	tests := []struct {
		file, name, arg string
		ok              bool
	}{
		{"#!/bin/sh\necho", "/bin/sh", "", true},
		{"#! /bin/sh -e -x \n", "/bin/sh", "-e -x", true},
		{"#!/bin/sh\t-e\n", "/bin/sh", "-e", true},
		{"#!/bin/sh", "/bin/sh", "", true},
		{"#!\n", "", "", false},
		{"#!" + strings.Repeat("x", 400), "", "", false},
		{"echo hi\n", "", "", false},
		{"", "", "", false},
	}
	for _, tt := range tests {
		name, arg, ok := Script(strings.NewReader(tt.file))
		if name != tt.name || arg != tt.arg || ok != tt.ok {
			t.Errorf("Script(%.20q) = %q, %q, %v", tt.file, name, arg, ok)
		}
	}
}
