// Package server is a page-fault handler for VMMs that restore guests from a
// memory file: it listens, shakes hands, has package pager serve, and sees to
// what becomes of a guest that cannot be served.
//
// # Model
//
//	Server     accepts clients and guests handed over, until it is told to stop
//	session    one client that is served: its process, its guest, how it ends
//	standby    how guests, and the listening socket, go to another server
//	recorder   which pages were touched, merged over all sessions
//	stall      a time in which no client is let in, for want of descriptors
//	socket     a UNIX socket at a path, made, replaced and removed with care
//
// A client that is wrong costs a log line and a count. Whatever it sent is
// closed; nobody else notices. One that comes while the server lacks descriptors is not
// wrong, and waits.
//
// # How a session ends
//
//	everything is there   the memory is let go of; the process is watched until it ends
//	the process ends      the descriptor is closed
//	it cannot be served   kill: the process is killed, then the descriptor closed
//	                      standby: another server gets it; failing that, kill
//	                      park: pages that cannot be read are tried again; the descriptor
//	                      stays open until the process ends or another server asks
//	the server ends       the same, for everybody
//
// The descriptor is never closed while a process may run whose pages are not
// all there: it would read zeroes (R12).
//
// # Locks
//
//	Server.mu      sessions, the listening socket, whether it stops
//	recorder.mu    what was recorded, and the writing of its file
//
// Nothing is taken while one of them is held, and no client is waited for.
//
//	with …         you may                      you may not
//	nothing        wait for a client, call the pager, end a session
//	Server.mu      look up, add and remove sessions; close a socket
//	recorder.mu    merge sets, write the file
//
// # What it does not do
//
// It cannot survive its own sudden death for its guests: a successor that has
// only a descriptor does not know which pages the guest gave back. The guests
// wait, as their VMMs hold the descriptor too, and the VMM notices by its end of
// the socket, which the server holds open for as long as it serves.
//
// Linux 5.3.
package server
