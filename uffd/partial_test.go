//go:build linux && (amd64 || arm64)

package uffd

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// mapOver replaces pages by others that nobody may touch, so that the range stays
// the test's.
func mapOver(t testing.TB, at addr.HVA, length uint64) {
	t.Helper()
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(at), uintptr(length), unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	if errno != 0 {
		t.Fatal("mmap:", errno)
	}
}

// A copy that is stopped in the middle tells exactly how far it came, and why it goes
// no further, whatever has changed; and where it can go on, it does from there.
//
//	copy                                     meanwhile
//	installs pages 0 to 2
//	faults on page 3 of its source, with
//	no lock held
//	                                         something changes
//	looks at its destination again
func TestCopyStoppedInTheMiddle(t *testing.T) {
	const n, stop = 8, 3
	nothing := func() {}
	for _, tc := range []struct {
		name   string
		change func(m, src *memory) (undo func())
		done   uint64
		want   error
		goesOn bool // after undo
	}{
		{"nothing changes", func(m, src *memory) func() { return nothing }, n, nil, false},
		{"an event is unread", func(m, src *memory) func() {
			removed := m.startRemove(n, 1)
			return func() {
				if e := m.event(); e.Kind != EventRemove {
					t.Errorf("got %v, want a remove", &e)
				}
				testutil.Proceeds(t, removed, "who gives a page back")
			}
		}, stop, unix.EAGAIN, true},
		{"the page is there by then", func(m, src *memory) func() {
			if _, err := m.Copy(m.at(stop), pages(1, 9), 0); err != nil {
				t.Error(err)
			}
			return nothing
		}, stop, unix.EEXIST, false},
		{"one after it is there by then", func(m, src *memory) func() {
			if _, err := m.Copy(m.at(6), pages(1, 9), 0); err != nil {
				t.Error(err)
			}
			return nothing
		}, 6, unix.EEXIST, false},
		{"the rest is another mapping's", func(m, src *memory) func() {
			mapOver(t, m.at(stop), (n-stop)*page)
			return nothing
		}, stop, unix.ENOENT, false},
		{"what follows is another mapping's", func(m, src *memory) func() {
			// The kernel looks for one mapping with all that is left of the range.
			mapOver(t, m.at(5), (n-5)*page)
			return nothing
		}, stop, unix.ENOENT, false},
		{"the rest is not registered any more", func(m, src *memory) func() {
			if err := m.Unregister(m.at(stop), (n-stop)*page); err != nil {
				t.Error(err)
			}
			return func() {
				if _, err := m.Register(m.at(stop), (n-stop)*page, Missing); err != nil {
					t.Error(err)
				}
			}
		}, stop, unix.ENOENT, true},
		{"the source is gone", func(m, src *memory) func() {
			mapOver(t, src.at(stop), (n-stop)*page)
			return nothing
		}, stop, unix.EFAULT, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := anonymous(t, n+1, Missing, FeatureEventRemove)
			if _, err := m.Copy(m.at(n), pages(1, 1), 0); err != nil {
				t.Fatal(err)
			}
			src := anonymous(t, n, Missing, 0)
			for i := range uint64(n) {
				if i == stop {
					continue
				}
				if _, err := src.Copy(src.at(i), pages(1, byte(10+i)), 0); err != nil {
					t.Fatal(err)
				}
			}
			type answer struct {
				done uint64
				err  error
			}
			answers := make(chan answer, 1)
			go func() {
				done, err := m.CopyFrom(m.at(0), src.at(0), n*page, 0)
				answers <- answer{done, err}
			}()
			if e := src.event(); e.Page(page) != src.at(stop) {
				t.Errorf("got %v, want a fault on page %d of the source", &e, stop)
			}
			undo := tc.change(m, src)
			if _, err := src.Copy(src.at(stop), pages(1, 10+stop), 0); err != nil && tc.want != unix.EFAULT {
				t.Fatal(err)
			}
			if err := src.Wake(src.base, n*page); err != nil {
				t.Fatal(err)
			}
			got := testutil.Proceeds(t, answers, "the copy")
			wantErr(t, "copy", got.done, tc.done*page, got.err, tc.want)
			undo()
			for i := range tc.done {
				if b := m.load(i); b != byte(10+i) {
					t.Errorf("page %d holds %d, want %d", i, b, 10+i)
				}
			}
			if !tc.goesOn {
				return
			}
			done, err := m.CopyFrom(m.at(stop), src.at(stop), (n-stop)*page, 0)
			wantErr(t, "the rest", done, (n-stop)*page, err, nil)
			if b := m.load(n - 1); b != 10+n-1 {
				t.Errorf("the last page holds %d, want %d", b, 10+n-1)
			}
		})
	}
}

// Beside threads that change the layout all the time, each call says exactly how many
// pages from the start are there: no more, no less, whatever stopped it.
func TestProgressIsExactBesideChanges(t *testing.T) {
	const n, rounds = 64, 60
	p := openPagemap(t)
	features := FeatureEventRemove | FeatureEventRemap | FeatureEventUnmap
	filled := func(m *memory) *memory {
		if _, err := unix.Pwrite(m.fd, pages(n, 3), 0); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, tc := range []struct {
		name    string
		make    func(t *testing.T) *memory
		install func(m *memory, from uint64) (uint64, error)
	}{
		{"copy", func(t *testing.T) *memory { return anonymous(t, n, Missing, features) }, func(m *memory, from uint64) (uint64, error) {
			return m.Copy(m.at(from), pages(n-from, 3), 0)
		}},
		{"copy to shared memory", func(t *testing.T) *memory { return shared(t, n, Missing, features|FeatureMissingShmem) }, func(m *memory, from uint64) (uint64, error) {
			return m.Copy(m.at(from), pages(n-from, 3), 0)
		}},
		{"zero", func(t *testing.T) *memory { return anonymous(t, n, Missing, features) }, func(m *memory, from uint64) (uint64, error) {
			return m.Zero(m.at(from), (n-from)*page, 0)
		}},
		{"armed zero", func(t *testing.T) *memory { return anonymous(t, n, Missing|WP, features|FeatureFaultWP) }, func(m *memory, from uint64) (uint64, error) {
			return m.Zero(m.at(from), (n-from)*page, Armed)
		}},
		{"continue", func(t *testing.T) *memory { return filled(shared(t, n, Minor, features|FeatureMinorShmem)) }, func(m *memory, from uint64) (uint64, error) {
			return m.Continue(m.at(from), (n-from)*page, 0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.make(t)
			stop := churn(t, m.FD)
			again, parts := 0, 0
			for range rounds {
				for from := uint64(0); from < n; {
					done, err := tc.install(m, from)
					switch {
					case err == nil && done != (n-from)*page, done%page != 0, done > (n-from)*page:
						t.Fatalf("%#x of %#x bytes, and %v", done, (n-from)*page, err)
					case err != nil && !errors.Is(err, unix.EAGAIN):
						t.Fatal(err)
					case err != nil:
						if again++; done > 0 {
							parts++
						}
						time.Sleep(50 * time.Microsecond)
					}
					from += done / page
					for i, there := range scanned(t, p, m.base, n, Selection{Any: PagePresent | PageSwapped}) {
						if there != (uint64(i) < from) {
							t.Fatalf("of %d pages that are said to be there, page %d: %v", from, i, there)
						}
					}
				}
				// Mapped over and registered again, rather than given back: shared pages
				// would stay.
				m.renew(t)
			}
			t.Logf("%d rounds: EAGAIN %d times, %d of them after part of the work, beside %d changes", rounds, again, parts, stop())
		})
	}
}

// renew has none of the pages mapped any more, whatever events are unread.
func (m *memory) renew(t testing.TB) {
	t.Helper()
	if m.fd >= 0 {
		// What is in the file stays for Continue, and goes for Copy.
		mode := Mode(Minor)
		if !m.Features().Has(FeatureMinorShmem) {
			mode = Missing
			if err := unix.Fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(m.n*page)); err != nil {
				t.Fatal(err)
			}
		}
		_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(m.base), uintptr(m.n*page), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_SHARED|unix.MAP_FIXED, uintptr(m.fd), 0)
		if errno != 0 {
			t.Fatal("mmap:", errno)
		}
		m.register(mode)
		return
	}
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.base), uintptr(m.n*page), unix.MADV_DONTNEED); errno != 0 {
		t.Fatal("madvise:", errno)
	}
}

// churn changes memory of its own that f is told of, and has its events read, until
// the function that it returns is called, which says how many changes there were.
func churn(t *testing.T, f *FD) (stop func() int) {
	t.Helper()
	own := &memory{f, t, hva(testutil.MapAnonymous(t, 4*page)), 4, -1}
	own.register(Missing)
	ctx, cancel := context.WithCancel(context.Background())
	w, err := f.NewWaiter()
	if err != nil {
		t.Fatal(err)
	}
	changes, read := 0, 0
	changed := testutil.Go(func() {
		for ; ctx.Err() == nil; changes++ {
			var errno unix.Errno
			if changes%2 == 0 {
				_, _, errno = unix.Syscall(unix.SYS_MADVISE, uintptr(own.base), uintptr(2*page), unix.MADV_DONTNEED)
			} else {
				mapOver(t, own.at(2), 2*page)
				_, err := f.Register(own.at(2), 2*page, Missing)
				if err != nil {
					t.Error(err)
				}
			}
			if errno != 0 {
				t.Error(errno)
			}
		}
	})
	reader := testutil.Go(func() {
		var events [readBatch]Event
		for {
			k, err := w.Wait(events[:], -1)
			if errors.Is(err, ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			read += k
		}
	})
	stop = sync.OnceValue(func() int {
		cancel()
		testutil.Proceeds(t, changed, "who changes the layout")
		// Unmapping it in the end would wait for a reader.
		if err := f.Unregister(own.base, own.n*page); err != nil {
			t.Error(err)
		}
		w.Close()
		testutil.Proceeds(t, reader, "who reads the events")
		if read < changes/2 {
			t.Errorf("%d events of %d changes", read, changes)
		}
		return changes
	})
	t.Cleanup(func() { stop() })
	return stop
}
