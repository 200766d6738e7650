package pager

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFairness is how long a page of one guest takes, of 64 that one
// process serves, while none, one or eight of the others fault as fast as they
// can and give all back again. On n processors a flood of k guests leaves each
// of k+1 its share. All but the first pages are of zeroes, since they were given
// back; see TestGuestsTakeTurns for who waits for a source.
func BenchmarkFairness(b *testing.B) {
	const guests, pages = 64, 256
	for _, flood := range []int{0, 1, 8} {
		b.Run(fmt.Sprintf("flood=%d", flood), func(b *testing.B) {
			s := newTestServer(b, Options{})
			var all []*realGuest
			for range guests {
				r := newReal(b, pages*smallPage, realOptions{features: events})
				serveReal(b, s, r, GuestOptions{Source: &quickSource{testSource{size: pages * smallPage}}})
				all = append(all, r)
			}
			var stop atomic.Bool
			ended := make(chan error, flood)
			touchAll := func(r *realGuest, each func(time.Duration)) error {
				var p [8]byte
				for i := range pages {
					began := time.Now()
					if err := load(r.page(i), p[:]); err != nil {
						return err
					}
					each(time.Since(began))
				}
				return adviseRaw(r.start, r.size, unix.MADV_DONTNEED)
			}
			for _, r := range all[1 : 1+flood] {
				go func() {
					var err error
					for !stop.Load() && err == nil {
						err = touchAll(r, func(time.Duration) {})
					}
					ended <- err
				}()
			}
			var took []time.Duration
			for b.Loop() {
				if err := touchAll(all[0], func(d time.Duration) { took = append(took, d) }); err != nil {
					b.Fatal(err)
				}
			}
			stop.Store(true)
			for range flood {
				if err := <-ended; err != nil {
					b.Fatal(err)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "ns/fault-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "ns/fault-p99")
			b.ReportMetric(0, "ns/op")
		})
	}
}
