package workload

// machineRows are about whole memories, virtual machines and vCPUs. No memory
// manager behind Subject has those: package bench/internal/machine measures them.
func machineRows() []Row {
	row := func(name, what string, cores int, wide bool) Row {
		return Row{name, what, cores, wide, func(*Run, Subject) error { return ErrNoFigure }}
	}
	return []Row{
		row("fork/vcpu", "fork of a space of 1 MiB in which a vCPU writes without end", 2, false),
		row("snapshot/pause=first", "pause of a live snapshot of 1 GiB of shared memory that is all there; peers: the bare arming call", 1, true),
		row("snapshot/pause=again", "pause of the next, 1 % written since in 400 runs; peers: an arming call for each run", 1, true),
		row("snapshot/pause=again/scattered", "pause of the next, 1 % written since, each page by itself; peers: an arming call for each page, or one for all, whichever is less", 1, true),
		row("clone/first-exit", "clone of a sealed template of 256 MiB, its VM and vCPU made and run to its first exit; the kernel's: the same calls of KVM alone", 1, false),
		row("restore/touch", "a page of a guest that starts with nothing there and touches all of it in order, while the server fills the rest; peers: a server in C that fills nothing", 2, true),
		row("exit/vcpu", "a vCPU's exit by port I/O and its way back; the kernel's: KVM_RUN alone", 1, false),
		row("exit/syscall", "a guest thread's system call from ring 3 and its way back", 1, false),
		row("exit/kick", "from kicking a running vCPU until its thread is out of the guest", 2, false),
	}
}
