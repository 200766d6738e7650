package pager

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// An instantKernel costs nothing: what is measured over it is the pager alone.
type instantKernel struct {
	next   addr.HVA
	left   int
	copied int
}

func (k *instantKernel) Fd() int { return -1 }

func (k *instantKernel) Read(events []uffd.Event) (int, error) {
	if k.left == 0 {
		return 0, nil
	}
	k.left--
	events[0] = uffd.Event{Kind: uffd.EventFault, Addr: k.next}
	k.next += smallPage
	return 1, nil
}

func (k *instantKernel) Copy(_ addr.HVA, src []byte, _ uffd.Flags) (uint64, error) {
	k.copied++
	return uint64(len(src)), nil
}

func (k *instantKernel) Zero(_ addr.HVA, n uint64, _ uffd.Flags) (uint64, error)     { return n, nil }
func (k *instantKernel) Continue(_ addr.HVA, n uint64, _ uffd.Flags) (uint64, error) { return n, nil }
func (k *instantKernel) Poison(_ addr.HVA, n uint64, _ uffd.Flags) (uint64, error)   { return n, nil }
func (k *instantKernel) WriteProtect(addr.HVA, uint64, uffd.Flags) error             { return nil }
func (k *instantKernel) Wake(addr.HVA, uint64) error                                 { return nil }
func (k *instantKernel) Unregister(addr.HVA, uint64) error                           { return nil }
func (k *instantKernel) Close() error                                                { return nil }

// A nullSource gives what is in the buffer.
type nullSource struct{ size uint64 }

func (s nullSource) Size() uint64                                    { return s.size }
func (s nullSource) ReadPages(context.Context, []byte, uint64) error { return nil }
func (s nullSource) TryReadPages([]byte, uint64) error               { return nil }

// stepper is a guest whose reader is run by the caller, a step at a time.
func stepper(t testing.TB, k kernel, nPages int, recording Recording) *Guest {
	t.Helper()
	s := newTestServer(t, Options{})
	l := newLedger("", k, []Region{{Start: base, Size: uint64(nPages) * smallPage, PageSize: smallPage}})
	o := GuestOptions{Source: nullSource{uint64(nPages) * smallPage}, Fail: func(error) {}, Recording: recording}
	o.setDefaults()
	g, err := newGuest(s, l, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.abandon)
	return g
}

// step does what the reader does with one read of events.
func (g *Guest) step(t testing.TB) {
	n, err := g.take()
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	g.settleLayout()
	for i := range n {
		if ev := &g.l.batch[i]; ev.Kind == uffd.EventFault {
			g.serveFault(ev)
		}
	}
}

const benchPages = 1 << 16

// BenchmarkBookkeeping is all that the pager does for a fault, with a kernel
// and a source that cost nothing.
func BenchmarkBookkeeping(b *testing.B) {
	for name, recording := range map[string]Recording{"plain": NotRecorded, "recorded": Record} {
		b.Run(name, func(b *testing.B) {
			k := &instantKernel{}
			g := stepper(b, k, benchPages, recording)
			b.ReportAllocs()
			for b.Loop() {
				if k.left == 0 {
					k.next, k.left = base, benchPages
					for i := range g.l.regions[0].pages.nWords() {
						g.l.regions[0].pages.word(i).Store(0)
					}
				}
				g.step(b)
			}
		})
	}
}

func TestNoAllocationPerFault(t *testing.T) {
	k := &instantKernel{next: base, left: benchPages}
	g := stepper(t, k, benchPages, NotRecorded)
	if n := testing.AllocsPerRun(10_000, func() { g.step(t) }); n != 0 {
		t.Errorf("%v allocations per fault", n)
	}
}

// BenchmarkRoundTrip is a load of an absent page by another thread, served by
// the real kernel.
func BenchmarkRoundTrip(b *testing.B) {
	const n = 1 << 15
	for name, src := range map[string]Source{
		"at-hand": &quickSource{testSource{size: n * smallPage}},
		"worker":  &testSource{size: n * smallPage},
	} {
		for _, spin := range []time.Duration{-1, 50 * time.Microsecond} {
			b.Run(fmt.Sprintf("%s/spin=%v", name, spin > 0), func(b *testing.B) {
				r := newReal(b, n*smallPage, realOptions{features: events})
				s := newTestServer(b, Options{SpinFor: spin})
				g := serveReal(b, s, r, GuestOptions{Source: src})
				buf := make([]byte, 8)
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					if i == n {
						b.StopTimer()
						// Forget the pages, in the kernel and then here.
						if err := adviseRaw(r.start, r.size, unix.MADV_DONTNEED); err != nil {
							b.Fatal(err)
						}
						g.l.gate.Lock()
						for w := range g.l.regions[0].pages.nWords() {
							g.l.regions[0].pages.word(w).Store(0)
						}
						g.l.regions[0].pages.recount()
						g.l.gate.Unlock()
						i = 0
						b.StartTimer()
					}
					if err := load(r.page(i), buf); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

// BenchmarkRestore runs a guest that touches 64 MiB of a 1 GiB image, with a
// source that costs 200 µs a read; "ratio" is the time with a recorded working
// set over that without.
func BenchmarkRestore(b *testing.B) {
	const imageSize, touched = 1 << 30, 64 << 20 / smallPage
	src := &testSource{size: imageSize, read: func(context.Context, uint64, int) error {
		sleepShort(200 * time.Microsecond)
		return nil
	}}
	// Which pages: clusters of a few pages all over the image, as programs do.
	var order []uint64
	for i := 0; len(order) < touched; i++ {
		cluster := uint64(i) * 2654435761 % (imageSize / smallPage / 16)
		for k := range uint64(8) {
			order = append(order, cluster*16+k)
		}
	}
	once := func(replay *WorkingSet) (time.Duration, *WorkingSet) {
		r := newReal(b, imageSize, realOptions{features: events})
		s := NewServer(Options{})
		defer s.Close()
		began := time.Now()
		g := serveReal(b, s, r, GuestOptions{Source: src, Recording: Record, Fill: Fill{Replay: replay}})
		defer g.Close()
		buf := make([]byte, 8)
		for _, p := range order {
			if err := load(r.start+addr.HVA(p)*smallPage, buf); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began), g.WorkingSet()
	}
	var cold, warm time.Duration
	for b.Loop() {
		t, ws := once(nil)
		cold += t
		t, _ = once(ws)
		warm += t
	}
	b.ReportMetric(cold.Seconds()/float64(b.N), "demand-s")
	b.ReportMetric(warm.Seconds()/float64(b.N), "replayed-s")
	b.ReportMetric(warm.Seconds()/cold.Seconds(), "ratio")
}
