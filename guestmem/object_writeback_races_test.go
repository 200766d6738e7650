package guestmem

import (
	"encoding/binary"
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

// Writers beside everything that takes permissions and marks away: each has a word of
// its own in every page, and counts it up. When a Sync has returned nil, the sink has
// each word as it was when the Sync began, or later; and in the end it has the last
// one. The sink fails now and then.
func TestR1ObjectWriteBackBesideEverything(t *testing.T) {
	m := newMemory(t, 64<<20)
	const pages = 20
	f := &wbFile{}
	f.data = make([]byte, pages*page)
	o, err := m.NewObject(ObjectOptions{Source: f, Sink: f, Size: pages * int64(page), Name: "file"})
	mustDo(t, err)
	a, b := newSpace(t, m), newSpace(t, m)
	atA, atB := mapShared(t, a, o, pages), mapShared(t, b, o, pages)
	s := mustSnapshot(t, a)
	const writers = 6
	var last [writers][pages]atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	loop := func(fn func(g *rand.Rand)) {
		g := rand.New(rand.NewPCG(rand.Uint64(), 1))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				fn(g)
			}
		}()
	}
	expected := func(err error) {
		if err != nil && !errors.Is(err, ErrAccess) && !errors.Is(err, ErrNotMapped) && !errors.Is(err, ErrNoSpace) && !errors.Is(err, errWbSink) {
			t.Error(err)
			stop.Store(true)
		}
	}
	for i := range writers {
		n := uint64(0)
		loop(func(g *rand.Rand) {
			p := g.IntN(pages)
			n++
			off := addr.GVA(p)*page + addr.GVA(i)*8
			var err error
			switch {
			case i < 2:
				err = a.Store64(ctx, atA+off, n)
			case i < 4:
				err = b.Store64(ctx, atB+off, n)
			case i == 4:
				var w [8]byte
				binary.LittleEndian.PutUint64(w[:], n)
				_, err = o.WriteAt(ctx, w[:], int64(off))
			default: // a device
				var pin *Pin
				if pin, err = a.Pin(ctx, addr.Range{Start: atA + off, End: atA + off + 8}, Write); err == nil {
					for range 20 {
						atomic.StoreUint64(m.arena.Word64(pin.Frames()[0], off.PageOffset()), n)
						last[i][p].Store(n)
						n++
					}
					n--
					err = pin.Release()
				}
			}
			expected(err)
			if err == nil {
				last[i][p].Store(n)
			}
		})
	}
	check := func() error {
		var before [writers][pages]uint64
		for i := range before {
			for p := range before[i] {
				before[i][p] = last[i][p].Load()
			}
		}
		if err := o.Sync(ctx, 0, ^uint64(0)); err != nil {
			return err
		}
		got := f.bytes()
		for i := range before {
			for p, want := range before[i] {
				if n := binary.LittleEndian.Uint64(got[p*int(page)+i*8:]); n < want {
					return fmt.Errorf("the sink has word %d of page %d as of %d, it was %d when Sync began", i, p, n, want)
				}
			}
		}
		return nil
	}
	loop(func(g *rand.Rand) {
		f.mu.Lock()
		f.broken = g.IntN(4) == 0
		f.mu.Unlock()
		expected(check())
	})
	loop(func(g *rand.Rand) {
		at, first := atA, addr.GVA(g.IntN(pages))
		as := a
		if g.IntN(2) == 0 {
			as, at = b, atB
		}
		n := uint64(g.IntN(pages-int(first)) + 1)
		for _, prot := range []Prot{ProtRead, rw} {
			expected(as.Protect(at+first*page, n*page, prot))
		}
		expected(as.Discard(at+first*page, n*page))
	})
	loop(func(g *rand.Rand) {
		child, err := a.Fork()
		if err != nil {
			expected(err)
			return
		}
		_, err = child.Load64(ctx, atA)
		expected(err)
		expected(child.Close())
	})
	loop(func(g *rand.Rand) {
		expected(a.Rollback(ctx, s))
		for _, err := range Diff(a, s, ByFrame) {
			if err != nil {
				expected(err)
			}
		}
		time.Sleep(time.Millisecond)
	})
	loop(func(*rand.Rand) {
		const away addr.GVA = 0x20000000
		move := func(from, to addr.GVA) {
			_, err := b.Remap(ctx, RemapOptions{Addr: from, OldLength: pages * page, NewLength: pages * page, NewAddr: to, Flags: RemapMayMove | RemapFixed})
			expected(err)
		}
		move(atB, away)
		move(away, atB)
		time.Sleep(time.Millisecond)
	})
	deadline := time.After(soakFor())
	<-deadline
	stop.Store(true)
	testutil.Proceeds(t, testutil.Go(wg.Wait), "the writers")
	f.mu.Lock()
	f.broken = false
	f.mu.Unlock()
	mustDo(t, check())
	mustCheck(t, m)
	mustDo(t, s.Close())
	mustDo(t, errors.Join(a.Close(), b.Close()))
	o.Close()
}
