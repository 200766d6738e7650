package workload

func cowRows() []Row {
	row := func(name, what string, size, step uint64, order pageOrder) Row {
		return Row{name, what, 1, true, func(run *Run, sub Subject) error {
			return prepareCOW(run, sub, size, step, order)
		}}
	}
	return []Row{
		row("cow/dense", "write of 8 B by a forked child to each page in turn, 16 MiB", 16*mib, PageSize, contiguous),
		row("cow/sparse", "write of 8 B by a forked child, one in 2 MiB, frames contiguous, 64 MiB", 64*mib, 2*mib, contiguous),
		row("cow/sparse/scattered", "write of 8 B by a forked child, one in 2 MiB, frames scattered, 64 MiB", 64*mib, 2*mib, scattered),
	}
}

func prepareCOW(run *Run, sub Subject, size, step uint64, order pageOrder) error {
	parent, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	base, err := mapTouched(parent, size, order)
	if err != nil {
		return err
	}
	addrs := stride(base, size, step)
	word := []byte{8, 7, 6, 5, 4, 3, 2, 1}
	w := &cowWriter{sub: sub, parent: parent}
	run.OnClose(w.drop)
	run.Round, run.Reset = len(addrs), w.renew
	run.Workers = []Op{func(i int) error { return w.copier.WriteEach(addrs[i:i+1], word) }}
	return nil
}

// A cowWriter is a forked child that has written nothing yet, renewed for
// each round.
type cowWriter struct {
	sub    Subject
	parent Space
	child  Space // nil before the first round
	copier Copier
}

func (w *cowWriter) renew() error {
	if err := w.drop(); err != nil {
		return err
	}
	w.sub.Settle()
	child, err := w.parent.Fork()
	if err != nil {
		return err
	}
	w.child = child
	w.copier, err = child.NewCopier(Owned)
	return err
}

func (w *cowWriter) drop() error {
	if w.copier != nil {
		if err := w.copier.Close(); err != nil {
			return err
		}
		w.copier = nil
	}
	if w.child != nil {
		if err := w.child.Close(); err != nil {
			return err
		}
		w.child = nil
	}
	return nil
}
