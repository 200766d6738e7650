// Package demo is the program that the sandbox runs when it is given none: it
// maps and writes memory, forks, and checks that neither side sees what the
// other writes. src/demo.c is its source, demo.elf its bytes; "make demo" in the
// sandbox's directory rebuilds them, and a test compares what both do.
package demo

import _ "embed"

// ELF is the program: static, freestanding, x86-64 Linux.
//
//go:embed demo.elf
var ELF []byte
