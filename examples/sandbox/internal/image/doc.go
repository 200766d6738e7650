// Package image reads what a sandbox can run: an x86-64 ELF file (fixed or
// position-independent, static or with an interpreter), or a script that names
// its interpreter.
//
// The header comes from whoever built the file, so every number in it is
// checked here, with overflow, before the loader uses it. Sections are never
// read: Linux does not look at them either, and a stripped or mangled section
// table is no reason to refuse a program. Only the layout of the structures is
// taken from debug/elf.
//
//	file ──Parse──► Image{Type, Entry, Segments, PHDR…}   pure: no guest, no memory
//	file ──Script─► interpreter and its one argument
package image
