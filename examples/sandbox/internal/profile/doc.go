// Package profile counts where a sandbox's exits come from and what they cost,
// and writes it as a pprof profile or a table.
//
// Each sample has a place of three names, from the outside in:
//
//	guest    until page fault             time in ring 3, by what ended it
//	syscalls read                         time in the sandbox, waiting included
//	faults   /bin/busybox    read shared  by the area and what the fault came to
//
// and three values: how many, how long, and how many pages.
package profile
