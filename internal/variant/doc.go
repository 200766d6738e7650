// Package variant is the table of ways in which the library can be broken on
// purpose, one line each, to see that its tests notice.
//
// In a normal build each is a constant that is false, and the branch under it is
// not compiled. Under the build tag `variants` each is a variable, of which the
// environment variable GUESTMM_VARIANT sets one. TestVariantsAreCaught, in
// package guestmem, runs the oracle and the torture with each:
//
//	go test -tags variants,invariants -run TestVariantsAreCaught -v ./guestmem
package variant
