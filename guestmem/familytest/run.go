package familytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Options of a run.
type Options struct {
	Memory *guestmem.Memory // with 96 MiB for 200 spaces
	First  *guestmem.AddressSpace
	Spaces int // most at a time
	Ops    int
	Seed   uint64
	// CheckEvery is after how many operations everything is compared; the space
	// that an operation was about is compared after each.
	CheckEvery int
	// Readers is how many compare at a time.
	Readers int
	// Read compares what a guest reads from at on with want, as reader n: it says
	// what differs. Nil: ReadAt does. Only whole pages are asked for.
	Read func(n int, as *guestmem.AddressSpace, at addr.GVA, want []byte) error
}

// Counts are how often each operation was done.
type Counts map[string]int

// Run drives the family of which First is the first, and closes all its address
// spaces, First too.
func Run(ctx context.Context, o Options) (Counts, error) {
	f := &family{Options: o, ctx: ctx, rng: rand.New(rand.NewPCG(o.Seed, 9)), done: make(Counts)}
	if f.Read == nil {
		f.Read = f.readAt
	}
	f.spaces = []*space{{as: o.First, pages: new(pages)}}
	for i := range nPages {
		if _, err := opMapAt(f, f.spaces[0], i, 1, i%5 == 0); err != nil {
			return nil, err
		}
	}
	for n := range o.Ops {
		name, s, err := f.step()
		if err == nil && s != nil {
			err = f.compare(0, s)
		}
		if err == nil && n%o.CheckEvery == 0 {
			err = f.compareAll()
		}
		if err != nil {
			return f.done, fmt.Errorf("seed %d, operation %d, %s: %w", o.Seed, n, name, err)
		}
	}
	if err := errors.Join(f.compareAll(), f.end()); err != nil {
		return f.done, fmt.Errorf("seed %d, at the end: %w", o.Seed, err)
	}
	return f.done, nil
}

// family is a run.
type family struct {
	Options
	ctx    context.Context
	rng    *rand.Rand
	spaces []*space
	pins   []*pin
	done   Counts
}

// step does one operation, and returns its name and the space to look at.
func (f *family) step() (string, *space, error) {
	s := f.spaces[f.rng.IntN(len(f.spaces))]
	n := f.rng.IntN(len(operations))
	// More forks than exits until the family is large, fewer after.
	op := operations[n]
	for len(f.spaces) < f.Spaces*9/10 && op.name == "exit" && f.rng.IntN(4) > 0 {
		op = operations[0]
	}
	did, err := op.do(f, s)
	if did {
		f.done[op.name]++
	}
	if op.name == "exit" && did {
		s = nil
	}
	return op.name, s, err
}

// compareAll compares every space and every pin, by several readers at a time, and
// every count.
func (f *family) compareAll() error {
	errs := make([]error, f.Readers)
	var wg sync.WaitGroup
	for r := range f.Readers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			// All readers look at the first, and each at its share of the others.
			for i, s := range f.spaces {
				if errs[r] == nil && (i == 0 || i%f.Readers == r) {
					errs[r] = f.compare(r, s)
				}
			}
		}()
	}
	wg.Wait()
	for _, p := range f.pins {
		errs = append(errs, p.check(f.Memory))
	}
	return errors.Join(append(errs, f.Memory.Check())...)
}

// compare reads every page of a space, neighbours at a time.
func (f *family) compare(reader int, s *space) error {
	var want []byte
	for i := 0; i < nPages; {
		want = want[:0]
		n := 0
		for run := runOf(i, nPages); n < run && s.pages[i+n].data != nil && s.pages[i+n].prot != guestmem.ProtNone; n++ {
			want = append(want, s.pages[i+n].data[:]...)
		}
		if n == 0 {
			var b [1]byte
			if _, err := s.as.ReadAt(f.ctx, b[:], at(i)); err == nil {
				return fmt.Errorf("page %d can be read, and should not", i)
			}
			i++
			continue
		}
		if err := f.Read(reader, s.as, at(i), want); err != nil {
			return fmt.Errorf("space %d of %d, pages [%d, %d): %w", slices.Index(f.spaces, s), len(f.spaces), i, i+n, err)
		}
		i += n
	}
	return nil
}

func (f *family) readAt(_ int, as *guestmem.AddressSpace, at addr.GVA, want []byte) error {
	got := make([]byte, len(want))
	if _, err := as.ReadAt(f.ctx, got, at); err != nil {
		return err
	}
	if k := firstDifference(got, want); k >= 0 {
		return fmt.Errorf("byte %d reads %#x, want %#x", k, got[k], want[k])
	}
	return nil
}

// end closes everything, in an order of its own, after which nothing may be left.
func (f *family) end() error {
	var errs []error
	for len(f.spaces) > 0 {
		_, err := opExit(f, f.spaces[f.rng.IntN(len(f.spaces))])
		errs = append(errs, err)
		if len(f.spaces) == 1 {
			f.spaces = append(f.spaces, nil) // the last may go too
			_, err := opExit(f, f.spaces[0])
			errs = append(errs, err)
			f.spaces = nil
		}
	}
	for _, p := range f.pins {
		errs = append(errs, p.check(f.Memory), p.p.Release())
	}
	return errors.Join(append(errs, f.Memory.Check())...)
}
