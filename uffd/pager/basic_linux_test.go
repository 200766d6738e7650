package pager

import "testing"

func TestServesFake(t *testing.T) {
	for _, src := range []Source{&testSource{size: 64 * smallPage}, &quickSource{testSource{size: 64 * smallPage}}} {
		f := newFake(t)
		s := newTestServer(t, Options{})
		g := serveFake(t, s, f, GuestOptions{Source: src})
		for i := range 64 {
			mustTouch(t, f, page(i), imagePage(uint64(i)*smallPage))
		}
		mustCount(t, "pages copied", &g.Stats().Copied, 64)
		f.remove(page(3), page(5))
		mustTouch(t, f, page(3), zeroPage)
		mustTouch(t, f, page(4), zeroPage)
		mustTouch(t, f, page(5), imagePage(5*smallPage))
	}
}
