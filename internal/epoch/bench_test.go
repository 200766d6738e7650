package epoch

import "testing"

func BenchmarkSection(b *testing.B) {
	d := newDomain(nil)
	b.Run("handle=owned", func(b *testing.B) {
		h := d.NewHandle()
		defer h.Close()
		b.ReportAllocs()
		for b.Loop() {
			h.Enter(1)
			h.Exit()
		}
	})
	b.Run("handle=pooled", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.Release(d.Acquire(1))
		}
	})
	b.Run("handle=pooled/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				d.Release(d.Acquire(1))
			}
		})
	})
}

func BenchmarkBarrier(b *testing.B) {
	d := newDomain(nil)
	for len(*d.slots.Load()) < 64 {
		d.NewHandle()
	}
	b.Run("slots=64/idle", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.Barrier(1)
		}
	})
}
