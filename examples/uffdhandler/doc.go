// Uffdhandler serves the page faults of VMs that are restored lazily from a
// memory file, as the page-fault handler of Firecracker's protocol:
//
//	uffdhandler -listen /run/vm.sock -mem /var/lib/vm.mem
//	uffdhandler doctor
//
// See docs/uffdhandler.md for its flags, what its policies do, restarting it
// under running guests, and its metrics.
//
// The program is put together from
//
//	internal/handshake   what a VMM says, and who it is
//	internal/server      clients, sessions, policies, handing over
//	internal/metrics     Prometheus
//	internal/progress    the bar of the background fill
//
// and packages uffd and uffd/pager of the library, which do the serving. It
// holds no locks of its own. Linux 5.3.
package main
