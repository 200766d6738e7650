// Package handshake is the receiving side of what a VMM says to a page-fault
// handler when it restores a guest, as Firecracker does: over a UNIX stream
// socket, once, without an answer,
//
//	a JSON array, an object for each region of memory
//	a userfaultfd, as SCM_RIGHTS
//
//	[{"base_host_virt_addr": 139637976727552, "size": 268435456, "offset": 0,
//	  "page_size": 4096, "page_size_kib": 4096}, ...]
//
// All numbers are bytes, also page_size_kib, which is the older name of
// page_size (but 4 and 2048 there, which are KiB). Objects may have more members, which are ignored. Other VMMs send
// a second descriptor beside the userfaultfd, or begin with a line
// "PID FD BYTES\n" that names a descriptor of their own to be fetched; both
// are understood.
//
// # Model
//
//	assembler   collects the pieces of one message until it is whole; pure
//	Parse       what the message says; pure
//	Receive     a message from a socket, with the descriptors that came along
//	Peer        the process at the other end, held by a pidfd
//
// The sender is not trusted: a message is at most MaxMessage long, has at most
// MaxDescriptors, and arrives before the deadline of the socket; whatever is
// wrong has an error by name, and then no descriptor is kept. What this process or
// its host lacks is told apart from that, by Shortage.
//
// There are no locks: a call has everything that it uses to itself.
//
// Linux 5.3 for pidfds; 5.6 for descriptors by "PID FD BYTES".
package handshake
