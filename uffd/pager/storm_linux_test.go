package pager

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// TestGuestsComeAndGo has many guests of one server added, handed over and
// closed while their memory is touched and given back. Whatever is read while a
// descriptor is open is right, and nothing is left in the end: see TestMain.
func TestGuestsComeAndGo(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	const guests, rounds, pages = 16, 8, 32
	s := newTestServer(t, Options{})
	var all sync.WaitGroup
	for k := range guests {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(k), 11))
			for range rounds {
				if err := comeAndGo(s, rnd, pages); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	testutil.Proceeds(t, testutil.Go(all.Wait), "guests")
	if n := len(s.Guests()); n != 0 {
		t.Errorf("%d guests are left", n)
	}
}

func comeAndGo(s *Server, rnd *rand.Rand, pages int) error {
	r, err := mapReal(uint64(pages)*smallPage, realOptions{features: events})
	if err != nil {
		return err
	}
	defer unmapRaw(r.start, r.size)
	defer r.fd.Close()
	src := sources(pages)[[]string{"reader", "worker"}[rnd.IntN(2)]]
	o := GuestOptions{FD: r.fd, Source: src, OnFailure: Park, Regions: []Region{{Start: r.start, Size: r.size}}}
	o.Fill.Background = Background(rnd.IntN(2))
	g, err := s.Add(o)
	if err != nil {
		return err
	}
	first, step := rnd.IntN(pages), 1+2*rnd.IntN(5)
	var touched atomic.Int32
	loaded := make(chan error, 1)
	go func() {
		p := make([]byte, smallPage)
		for n := range pages {
			i := (first + n*step) % pages
			touched.Add(1)
			err := load(r.page(i), p)
			if err == nil && !bytes.Equal(p, imagePage(uint64(i)*smallPage)) {
				err = fmt.Errorf("page %d holds %x", i, head(p))
			}
			if err == nil && n%5 == 4 {
				if err = adviseRaw(r.page(i), smallPage, unix.MADV_DONTNEED); err == nil {
					err = load(r.page(i), p)
				}
				if err == nil && !bytes.Equal(p, zeroPage) {
					err = fmt.Errorf("page %d was given back and holds %x", i, head(p))
				}
			}
			if err != nil {
				loaded <- err
				return
			}
		}
		loaded <- nil
	}()
	o.FD, o.Regions = nil, nil
	for range rnd.IntN(4) {
		takeover, err := g.Detach()
		if err != nil {
			break // all is there, and the guest has been let go of
		}
		if g, err = s.TakeOver(takeover, o); err != nil {
			return err
		}
	}
	err = <-loaded
	g.Close()
	return err
}

// TestBlockingIsUndone: O_NONBLOCK belongs to the description, which the guest's
// process shares: it, or an os.File of the descriptor, can take it off. Without
// it the descriptor polls as broken. It is put back, and nobody notices.
func TestBlockingIsUndone(t *testing.T) {
	const n = 16
	r := newReal(t, n*smallPage, realOptions{features: events})
	g := serveReal(t, newTestServer(t, Options{SpinFor: -1}), r, GuestOptions{Source: &testSource{size: n * smallPage}})
	for i := range n {
		flags, err := unix.FcntlInt(uintptr(r.fd.Fd()), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(r.fd.Fd()), unix.F_SETFL, flags&^unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		loadPage(t, r.page(i), imagePage(uint64(i)*smallPage))
	}
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}
