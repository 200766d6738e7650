package guestmem

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/invariants"
)

// Failures by chance in one address space that several goroutines use at a time:
// plans go stale while frames are got for them, doors shut, and what was got for
// nothing goes back. What anybody reads there is others' tests; here no frame may
// be left, and no error be without a name.
func TestR13FailuresBesideOthers(t *testing.T) {
	rounds, ops := uint64(4), 400
	switch {
	case *soak:
		rounds, ops = 400, 2000
	case invariants.Enabled:
		rounds, ops = 2, 100
	}
	for _, wo := range injectWorlds {
		t.Run(wo.name, func(t *testing.T) {
			for seed := *injectSeed; seed < *injectSeed+rounds; seed++ {
				o := wo.o
				o.memory.Size *= 4
				w := newInjectWorld(t, o, inject.Plan{})
				w.view = nil // it settles only while nobody is about
				w.newSpace()
				run := inject.Start(inject.Plan{OneIn: 4 + int(seed%3)*8, Seed: seed})
				_ = run.During(func() error {
					var all sync.WaitGroup
					for g := range uint64(4) {
						all.Go(func() { besideOthers(t, w, rand.New(rand.NewPCG(seed, g)), ops) })
					}
					all.Go(func() {
						for range ops / 20 {
							if err := w.m.window(func() error { return nil }); err != nil {
								t.Error(err)
							}
						}
					})
					all.Wait()
					return nil
				})
				w.closeSpace(0)
				if v := w.m.view; v != nil {
					v.Flush()
				}
				w.end()
				if t.Failed() || run.Failures() == 0 {
					t.Fatalf("with -inject.seed=%d: %d failures", seed, run.Failures())
				}
			}
		})
	}
}

// besideOthers makes calls on the first space, and forks of it.
func besideOthers(t *testing.T, w *injectWorld, rng *rand.Rand, ops int) {
	as := w.spaces[0]
	pick := func() (addr.GVA, uint64) {
		i := addr.GVA(rng.IntN(12))
		return injPrivate + i*page, uint64(1+rng.IntN(4)) * page
	}
	data := make([]byte, 2*page)
	for range ops {
		gva, n := pick()
		var err error
		switch rng.IntN(8) {
		case 0:
			o := MapOptions{Addr: gva, Length: n, Prot: rw, Flags: anon | MapFixed}
			if rng.IntN(3) == 0 {
				o.Object, o.Flags = w.object, MapPrivate|MapFixed
			}
			_, err = as.Map(endingContext{ctx}, o)
		case 1:
			err = as.Unmap(gva, n)
		case 2:
			err = as.Protect(gva, n, []Prot{r_, rw, ProtNone}[rng.IntN(3)])
		case 3:
			err = as.Discard(gva, n)
		case 4, 5:
			_, err = as.WriteAt(endingContext{ctx}, data[:n/2], gva+addr.GVA(rng.IntN(100)))
		case 6:
			var p *Pin
			if p, err = as.Pin(endingContext{ctx}, addr.Range{Start: gva, End: gva + addr.GVA(n)}, Read); err == nil {
				defer p.Release()
			}
		case 7:
			var child *AddressSpace
			if child, err = as.Fork(); err == nil {
				_, err = child.WriteAt(ctx, data[:n/2], gva)
				err = errors.Join(err, child.Close())
			}
		}
		switch {
		case err == nil, errors.Is(err, inject.Odd), errors.Is(err, ErrNoMemory), errors.Is(err, ErrNotMapped), errors.Is(err, ErrAccess),
			errors.Is(err, ErrBus), errors.Is(err, ErrNoSpace), errors.Is(err, context.Canceled):
		default:
			t.Errorf("%v has no name", err)
		}
	}
}
