// Package vfs is what a sandboxed program sees of files.
//
//	descriptor ──► Open (offset, flags, count) ──► File (pipe, host file, stream, device, …)
//	path ──Namespace──► /proc /dev   synthesized
//	                    /tmp, /dev/shm  in memory, writable, bounded in bytes together;
//	                                    behind /tmp the host's shows through (overlay.go)
//	                    the rest     the host's files below one directory, read-only
//
// No File blocks: a read that would have to wait returns EAGAIN, and whoever
// wants to wait registers a channel with Watch, tries once more, and sleeps on
// the channel beside whatever else may wake it (a signal, a deadline, the end
// of the sandbox). That is Linux's own wait-queue protocol, and the reason why
// poll, select and interrupted reads need no code of their own here.
//
// Containment is the kernel's: host paths are resolved by openat2 with
// RESOLVE_IN_ROOT, so neither ".." nor a symbolic link leaves the root, and
// with RESOLVE_NO_MAGICLINKS, so none goes through the sandbox's own
// descriptors. Only directories and regular files can be opened; a device node
// or socket below the root can be looked at and no more.
//
// Errors are plain errnos. Oldest kernel: 5.6 (openat2).
//
// Locks, outermost first; but for snapshots.mu none is held while another
// package is called:
//
//	epollTie           which epoll sets are in which
//	  Open.hookMu      who wants to know of the end
//	  Epoll.mu         a set; held while its files are asked
//	    hostEdges.mu   what the host's epoll has reported
//	Open.mu            the offset
//	  tmpNode.appending  a file's end
//	  Tmpfs.mu         the tree in memory and its byte count
//	  fifo.mu          which pipe a name stands for
//	  pipe.mu          buffer and ends; also under Epoll.mu, as eventFD.mu and TimerFD.mu
//	    flights.mu     which pipes carry descriptions
//	    Queue.mu       who waits
//	snapshots.mu       what synthesized files hold; their content is made under it
package vfs
