package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// pauseLock is a Pauser of goroutines that stand for vCPUs: each holds it shared
// while it is in the guest.
type pauseLock struct{ sync.RWMutex }

func (p *pauseLock) Pause()  { p.Lock() }
func (p *pauseLock) Resume() { p.Unlock() }

// slotStore stores through the slot mapping by a system call, as a vCPU, vhost or
// io_uring would: armed pages trap.
func slotStore(r *Region, off uint64, p []byte) error {
	return testutil.Store(uint64(r.Slot())+off, p)
}

func mustSnapshotOf(tb testing.TB, m *Memory, o SnapshotOptions) *Snapshot {
	tb.Helper()
	s, err := m.Snapshot(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("Close of a snapshot: %v", err)
		}
	})
	return s
}

func mustSweep(tb testing.TB, s *Snapshot) {
	tb.Helper()
	if err := s.Sweep(context.Background()); err != nil {
		tb.Fatal(err)
	}
}

// mustShow checks that a snapshot holds want at base, by reading it in pieces, and
// that what Data leaves out is zero. Who waits for a page without end ends too.
func mustShow(tb testing.TB, s *Snapshot, base addr.GPA, want []byte, what string) {
	tb.Helper()
	testutil.Within(tb, 2*time.Minute, func() { show(tb, s, base, want, what) })
}

func show(tb testing.TB, s *Snapshot, base addr.GPA, want []byte, what string) {
	tb.Helper()
	got := make([]byte, len(want))
	for off := 0; off < len(got); {
		n := min(len(got)-off, 3*page+100)
		if _, err := s.ReadAt(got[off:off+n], base+addr.GPA(off)); err != nil {
			tb.Fatalf("%s: ReadAt: %v", what, err)
		}
		off += n
	}
	mustEqualPages(tb, got, want, what)
	data := make([]bool, len(want)/page)
	err := s.Data(base, func(start addr.GPA, n uint64) bool {
		for i := range n {
			data[uint64(start-base)/page+i] = true
		}
		return true
	})
	if err != nil {
		tb.Fatalf("%s: Data: %v", what, err)
	}
	for i, is := range data {
		if !is && !allZero(want[i*page:(i+1)*page]) {
			tb.Errorf("%s: Data leaves page %d out, which is not zero", what, i)
		}
	}
}

func mustEqualPages(tb testing.TB, got, want []byte, what string) {
	tb.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := 0; i < len(want); i += page {
		if !bytes.Equal(got[i:i+page], want[i:i+page]) {
			j := i
			for got[j] == want[j] {
				j++
			}
			tb.Fatalf("%s: page %d differs at %#x: %#x, want %#x", what, i/page, j, got[j:min(j+8, i+page)], want[j:min(j+8, i+page)])
		}
	}
}

// armable are the ways to make a region that can be armed.
func armable(tb testing.TB) []backingCase {
	var out []backingCase
	for _, c := range backings(tb) {
		o := c.o(tb)
		if o.Backing == BackingFile || o.Backing == BackingFilePrivate || c.name == "foreign private file" {
			continue
		}
		out = append(out, c)
	}
	return out
}

// A snapshot holds what memory held at its instant, whoever writes afterwards, in
// whatever kind of region, in memory that was never touched too.
func TestSnapshotHoldsTheInstant(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for _, c := range armable(t) {
		for _, sweep := range []SweepMode{SweepOnDemand, SweepInBackground} {
			t.Run(fmt.Sprint(c.name, sweep), func(t *testing.T) {
				m := newPhys(t)
				o := c.o(t)
				o.Base, o.Size = 1<<30, c.size
				r := mustAdd(t, m, o)
				want := c.first(int(c.size))
				put := func(off uint64, p []byte) {
					mustWritePhys(t, m, r.Base()+addr.GPA(off), p)
					copy(want[off:], p)
				}
				put(page+7, []byte("one"))
				put(5*page-2, []byte("over two pages"))
				before := bytes.Clone(want)
				s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: sweep})
				put(page+9, []byte("two"))
				mustDo(t, slotStore(r, 2*page+5, []byte("never touched")))
				copy(want[2*page+5:], "never touched")
				mustDo(t, slotStore(r, 5*page, []byte("touched")))
				copy(want[5*page:], "touched")
				mustShow(t, s, r.Base(), before, "first")
				between := bytes.Clone(want)
				s2 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: sweep})
				put(page+9, []byte("three"))
				put(7*page, []byte("for the first time"))
				mustDo(t, m.Discard(r.Base(), r.PageSize()))
				clear(want[:r.PageSize()])
				mustShow(t, s, r.Base(), before, "first again")
				mustShow(t, s2, r.Base(), between, "second")
				mustSweep(t, s)
				mustSweep(t, s2)
				mustShow(t, s, r.Base(), before, "first, swept")
				mustShow(t, s2, r.Base(), between, "second, swept")
				mustEqualPages(t, mustReadPhys(t, m, r.Base(), len(want)), want, "the guest")
				if st := s.Stats(); st.PagesLeft != 0 || st.PagesCopied+st.PagesZero != c.size/page {
					t.Errorf("after the sweep: %+v", st)
				}
				clone, err := s2.Clone(context.Background(), CloneOptions{})
				mustDo(t, err)
				mustEqualPages(t, mustReadPhys(t, clone, r.Base(), len(want)), between, "a clone")
				mustDo(t, clone.Close())
			})
		}
	}
}

// snapshotModel is a memory with writers of every kind, and what is taken of it.
type snapshotModel struct {
	t     *testing.T
	m     *Memory
	pause pauseLock
	r     []*Region
	stop  atomic.Bool
	wg    sync.WaitGroup
}

func (w *snapshotModel) write(seed uint64, op func(rng *rand.Rand, r *Region) error) {
	w.wg.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 7))
		for !w.stop.Load() {
			if err := op(rng, w.r[rng.IntN(len(w.r))]); err != nil {
				w.t.Error(err)
				return
			}
		}
	})
}

// end stops the writers.
func (w *snapshotModel) end() {
	w.stop.Store(true)
	w.wg.Wait()
}

// naive reads all of memory; it is called at the instant.
func (w *snapshotModel) naive() ([][]byte, error) {
	out := make([][]byte, len(w.r))
	for i, r := range w.r {
		out[i] = make([]byte, r.size)
		if _, err := w.m.ReadAt(out[i], r.base); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// taken is a snapshot and what it has to hold.
type taken struct {
	s    *Snapshot
	want [][]byte
}

func (w *snapshotModel) take(o SnapshotOptions) *taken {
	k := &taken{}
	o.Pauser = &w.pause
	o.AtInstant = func() (err error) {
		k.want, err = w.naive()
		return err
	}
	s, err := w.m.Snapshot(context.Background(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	k.s = s
	return k
}

func (w *snapshotModel) check(k *taken, what string) {
	for i, r := range w.r {
		mustShow(w.t, k.s, r.base, k.want[i], fmt.Sprintf("%s, region %v", what, r))
	}
}

// Random stores of every kind beside several snapshots that overlap: each holds,
// to the byte, what a naive copy holds that was taken at its instant.
func TestSnapshotModel(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	const size = 256 * page
	m := newPhys(t)
	w := &snapshotModel{t: t, m: m}
	w.r = append(w.r,
		mustAdd(t, m, RegionOptions{Base: 0, Size: size}),
		mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: size, Backing: BackingAnonymous, HugePages: HugeNever}),
		mustAdd(t, m, RegionOptions{Base: 2 << 30, Size: 16 * page, Access: RegionReadOnly}))
	rw := w.r[:2]
	w.write(1, func(rng *rand.Rand, _ *Region) error {
		p := make([]byte, rng.IntN(3*page))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		_, err := m.WriteAt(p, rw[rng.IntN(2)].base+addr.GPA(rng.Uint64N(size-uint64(len(p)))))
		return err
	})
	w.write(2, func(rng *rand.Rand, _ *Region) error {
		gpa := rw[rng.IntN(2)].base + addr.GPA(rng.Uint64N(size)&^7)
		if rng.IntN(2) == 0 {
			return m.Store64(gpa, rng.Uint64())
		}
		_, err := m.CompareAndSwap32(gpa, 0, rng.Uint32())
		return err
	})
	for k := range uint64(2) {
		w.write(3+k, func(rng *rand.Rand, _ *Region) error {
			w.pause.RLock()
			defer w.pause.RUnlock()
			p := make([]byte, 1+rng.IntN(page))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			return slotStore(rw[rng.IntN(2)], rng.Uint64N(size-uint64(len(p))), p)
		})
	}
	w.write(5, func(rng *rand.Rand, _ *Region) error {
		n := 1 + rng.Uint64N(4)
		err := m.Discard(rw[rng.IntN(2)].base+addr.GPA(rng.Uint64N(size/page-n)*page), n*page)
		if errors.Is(err, ErrBusy) {
			err = nil // a slice
		}
		return err
	})
	w.write(6, func(rng *rand.Rand, _ *Region) error {
		n := 1 + rng.Uint64N(2*page)
		s, err := m.Slice(rw[rng.IntN(2)].base+addr.GPA(rng.Uint64N(size-n)), n, Write)
		if err != nil {
			return err
		}
		for range 20 {
			// A device: it stands still when the guest does, and nobody is told of
			// what it stores.
			w.pause.RLock()
			s.Bytes()[rng.IntN(int(n))] = byte(rng.Uint32())
			w.pause.RUnlock()
		}
		s.Release()
		return nil
	})
	t.Cleanup(w.end)
	rounds := 40
	switch {
	case *soak:
		rounds = 4000
	case testing.Short():
		rounds = 20
	}
	rng := rand.New(rand.NewPCG(9, 9))
	var open []*taken
	for round := range rounds {
		k := w.take(SnapshotOptions{Sweep: SweepMode(rng.IntN(2)), After: ArmedAfter(rng.IntN(8) / 7)})
		open = append(open, k)
		if rng.IntN(2) == 0 {
			w.check(k, fmt.Sprint("at once, round ", round))
		}
		for len(open) > rng.IntN(4) {
			i := rng.IntN(len(open))
			k := open[i]
			open = append(open[:i], open[i+1:]...)
			switch rng.IntN(3) {
			case 0:
				w.check(k, fmt.Sprint("unswept, round ", round))
			case 1:
				mustSweep(t, k.s)
				w.check(k, fmt.Sprint("swept, round ", round))
			}
			mustDo(t, k.s.Close())
		}
		if t.Failed() {
			break
		}
	}
	w.end()
	for _, k := range open {
		mustSweep(t, k.s)
		w.check(k, "in the end")
		mustDo(t, k.s.Close())
	}
}
