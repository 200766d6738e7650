// Package guest is the guest that the VMM runs when it is given no kernel, and
// what the two agree on: where its memory lies, its configuration, its control
// pages and its ledgers. src/guest.c is its source and says what it does;
// guest.bin is its bytes, which "make guest" in the VMM's directory rebuilds.
package guest

import _ "embed"

// Code is the guest, to be loaded at CodeBase, which is where it begins too.
//
//go:embed guest.bin
var Code []byte

// Source is what the constants of this package are compared with.
//
//go:embed src/guest.h
var Source string
