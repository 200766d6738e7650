package pager

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

func TestKernelCopyAndRemove(t *testing.T) {
	const n = 64
	for name, src := range map[string]Source{"slow": &testSource{size: n * smallPage}, "quick": &quickSource{testSource{size: n * smallPage}}} {
		t.Run(name, func(t *testing.T) {
			r := newReal(t, n*smallPage, realOptions{features: events})
			s := newTestServer(t, Options{})
			g := serveReal(t, s, r, GuestOptions{Source: src})
			for i := range n / 2 {
				loadPage(t, r.page(i), imagePage(uint64(i)*smallPage))
			}
			// One that is there, one that never was.
			for _, i := range []int{3, n - 3} {
				if err := adviseRaw(r.page(i), smallPage, unix.MADV_DONTNEED); err != nil {
					t.Fatal(err)
				}
				loadPage(t, r.page(i), zeroPage)
			}
			loadPage(t, r.page(n-2), imagePage((n-2)*smallPage))
			if got := g.Stats().Removed.Load(); got != 2 {
				t.Errorf("%d pages removed, want 2", got)
			}
		})
	}
}

// TestKernelContinue has two clones share the pages of a cache: each page is
// read once, writes stay with who wrote, and what is given back reads as zero.
func TestKernelContinue(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMinorShmem)
	const n = 64
	src := &testSource{size: n * smallPage}
	cache, err := NewCache(src)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	file, err := cache.ReadOnly()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s := newTestServer(t, Options{})
	var guests [2]*realGuest
	var served [2]*Guest
	for i := range guests {
		guests[i] = newReal(t, n*smallPage, realOptions{features: events | uffd.FeatureMinorShmem | uffd.FeatureMissingShmem, mode: uffd.Missing | uffd.Minor, file: file})
		served[i] = serveReal(t, s, guests[i], GuestOptions{Source: src, Regions: []Region{
			{Start: guests[i].start, Size: n * smallPage, Mode: ModeContinue, Cache: cache},
		}})
	}
	written := make([]byte, smallPage)
	for i := range written {
		written[i] = 0xee
	}
	for i := range n {
		loadPage(t, guests[0].page(i), imagePage(uint64(i)*smallPage))
		if err := store(guests[0].page(i), written); err != nil {
			t.Fatal(err)
		}
		loadPage(t, guests[1].page(i), imagePage(uint64(i)*smallPage))
		loadPage(t, guests[0].page(i), written)
	}
	if reads := served[0].Stats().Reads.Load() + served[1].Stats().Reads.Load(); reads != n {
		t.Errorf("%d reads of the source for %d pages and two guests", reads, n)
	}
	for i := range n {
		if err := adviseRaw(guests[1].page(i), smallPage, unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		loadPage(t, guests[1].page(i), zeroPage)
		loadPage(t, guests[0].page(i), written)
	}
}

func TestKernelRemap(t *testing.T) {
	const n = 16
	r := newReal(t, n*smallPage, realOptions{features: events})
	s := newTestServer(t, Options{})
	g := serveReal(t, s, r, GuestOptions{Source: &testSource{size: n * smallPage}})
	loadPage(t, r.page(5), imagePage(5*smallPage))
	to := r.room(t, 4*smallPage)
	if err := remapRaw(r.page(4), 4*smallPage, to); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		loadPage(t, to+r.page(i)-r.start, imagePage(uint64(4+i)*smallPage))
	}
	loadPage(t, r.page(3), imagePage(3*smallPage))
	loadPage(t, r.page(8), imagePage(8*smallPage))
	if got := g.Stats().Remaps.Load(); got != 1 {
		t.Errorf("%d remaps told, want 1", got)
	}
	if err := g.Err(); err != nil {
		t.Errorf("guest ended: %v", err)
	}
}

// TestKernelFillLetsGo fills memory that nobody touches, and wants the pager to
// go away and the memory to be there without it.
func TestKernelFillLetsGo(t *testing.T) {
	const n = 1000
	r := newReal(t, n*smallPage, realOptions{features: events})
	s := newTestServer(t, Options{})
	var last Progress
	if err := adviseRaw(r.page(7), smallPage, unix.MADV_NORMAL); err != nil {
		t.Fatal(err)
	}
	g := serveReal(t, s, r, GuestOptions{
		Source: &testSource{size: n * smallPage}, Fill: Fill{Background: FillAll},
		OnProgress: func(p Progress) { last = p },
	})
	testutil.Proceeds(t, g.Done(), "the fill's end")
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	if last.Phase != "complete" || last.Done != n || last.Total != n {
		t.Errorf("last progress %+v", last)
	}
	r.fd.Close()
	for i := range n {
		loadPage(t, r.page(i), imagePage(uint64(i)*smallPage))
	}
}
