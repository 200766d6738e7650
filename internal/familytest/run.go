package familytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
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
	// Large makes each page of the model 128 KiB, so that there is room for leaves of
	// 2 MiB.
	Large bool
	// Host, if not nil, is a file that is mapped too, shared.
	Host *os.File
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
	if f.layout = small; f.Large {
		f.layout = large
	}
	if err := f.openFiles(); err != nil {
		return nil, err
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
	layout
	ctx    context.Context
	rng    *rand.Rand
	spaces []*space
	pins   []*pin
	done   Counts

	file, host         *guestmem.Object // of nPages each
	fileData, hostData [nPages]*content
}

// openFiles makes the files that are mapped.
func (f *family) openFiles() (err error) {
	data := make([]byte, nPages*f.unit)
	for i := range nPages {
		c := (*content)(f.draw(data[uint64(i)*f.unit:][:pageSize]))
		f.fileData[i] = c
		own := *c
		f.hostData[i] = &own
	}
	f.file, err = f.Memory.NewFileObject(bytes.NewReader(data), int64(len(data)), "file")
	if err != nil || f.Host == nil {
		return err
	}
	if _, err := f.Host.WriteAt(data, 0); err != nil {
		return err
	}
	f.host, err = f.Memory.NewHostObject(f.Host, "host")
	return err
}

func (f *family) closeFiles() {
	f.file.Close()
	if f.host != nil {
		f.host.Close()
	}
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
	return errors.Join(append(errs, f.Memory.Check(), f.checkLayout())...)
}

// checkLayout holds the picture's totals against the figures.
func (f *family) checkLayout() error {
	stats := f.Memory.Stats()
	l := f.Memory.Layout()
	if sum := l.DataFrames + l.Tables + l.Unmapped + l.PinnedAway; sum != stats.FramesInUse || l.Tables != stats.Tables || len(l.Spaces) != int(stats.Spaces+stats.Snapshots) {
		return fmt.Errorf("layout: %d frames, %d tables, %d spaces; want %d, %d, %d and %d snapshots", sum, l.Tables, len(l.Spaces),
			stats.FramesInUse, stats.Tables, stats.Spaces, stats.Snapshots)
	}
	for i := range l.Spaces {
		if s := &l.Spaces[i]; s.Bytes(0, 0) != s.Mapped {
			return fmt.Errorf("layout of space %d: %d bytes, of %d", s.ID, s.Bytes(0, 0), s.Mapped)
		}
	}
	return nil
}

// compare reads every page of a space, neighbours at a time.
func (f *family) compare(reader int, s *space) error {
	var want []byte
	for i := 0; i < nPages; {
		want = want[:0]
		n := 0
		for run := runOf(i, nPages); n < run && s.pages[i+n].isReadable(); n++ {
			want = append(want, s.pages[i+n].data[:]...)
			want = append(want, make([]byte, min(f.unit-pageSize, pageSize))...)
			if f.unit != pageSize {
				n++ // one at a time
				break
			}
		}
		if n == 0 {
			var b [1]byte
			if _, err := s.as.ReadAt(f.ctx, b[:], f.at(i)); err == nil {
				return fmt.Errorf("page %d can be read, and should not", i)
			}
			i++
			continue
		}
		if err := f.Read(reader, s.as, f.at(i), want); err != nil {
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
	f.closeFiles()
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
