package workload

// serveRows are about serving page faults. No memory manager behind Subject does
// that: package bench/floor measures them, ours and in C.
func serveRows() []Row {
	row := func(name, what string, cores int, wide bool) Row {
		return Row{name, what, cores, wide, func(*Run, Subject) error { return ErrNoFigure }}
	}
	const from = "from a guest's touch of a page until it goes on: "
	return []Row{
		row("uffd/missing", from+"private memory, UFFDIO_COPY", 2, false),
		row("uffd/missing-shmem", from+"memfd, UFFDIO_COPY", 2, false),
		row("uffd/minor", from+"memfd, UFFDIO_CONTINUE", 2, false),
		row("uffd/wp", from+"write to an armed page of a memfd, UFFDIO_WRITEPROTECT", 2, false),
		row("uffd/zeropage", from+"private memory, UFFDIO_ZEROPAGE", 2, false),
		row("uffd/bulk=64KiB", "a page installed by UFFDIO_COPY in runs of 64 KiB", 1, true),
		row("uffd/arm=1GiB", "one UFFDIO_WRITEPROTECT of 1 GiB of shared memory that is all there", 1, true),
	}
}
