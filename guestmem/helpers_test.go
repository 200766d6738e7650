package guestmem

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

var ctx = context.Background()

const page = addr.PageSize

// offset turns an offset into something that can be added to an address.
func offset(off uint64) addr.GVA { return addr.GVA(off) }

// newMemory returns a memory whose every count is compared with a full walk
// when the test ends, and which must then have no frame in use.
func newMemory(tb testing.TB, size uint64) *Memory {
	tb.Helper()
	m, err := NewMemory(MemoryOptions{Size: size})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		mustCheck(tb, m)
		for _, as := range m.sortedSpaces() {
			if err := as.Close(); err != nil {
				tb.Error(err)
			}
		}
		mustCheck(tb, m)
		if s := m.Stats(); s.FramesInUse != 0 || s.Tables != 0 || s.ObjectPages != 0 {
			tb.Errorf("left in use at the end: %+v", s)
		}
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func mustCheck(tb testing.TB, m *Memory) {
	tb.Helper()
	if err := m.Check(); err != nil {
		tb.Errorf("Check: %v", err)
	}
}

func newSpace(tb testing.TB, m *Memory) *AddressSpace {
	tb.Helper()
	as, err := m.NewAddressSpace(SpaceOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return as
}

func mustMap(tb testing.TB, as *AddressSpace, o MapOptions) addr.GVA {
	tb.Helper()
	gva, err := as.Map(ctx, o)
	if err != nil {
		tb.Fatal(err)
	}
	return gva
}

// mapAnon maps private anonymous memory, readable and writable.
func mapAnon(tb testing.TB, as *AddressSpace, length uint64) addr.GVA {
	tb.Helper()
	return mustMap(tb, as, MapOptions{Length: length, Prot: ProtRead | ProtWrite, Flags: MapPrivate | MapAnonymous})
}

func mapAt(tb testing.TB, as *AddressSpace, at addr.GVA, length uint64, prot Prot) addr.GVA {
	tb.Helper()
	return mustMap(tb, as, MapOptions{Addr: at, Length: length, Prot: prot, Flags: MapPrivate | MapAnonymous | MapFixed})
}

func mustWrite(tb testing.TB, as *AddressSpace, gva addr.GVA, p []byte) {
	tb.Helper()
	if n, err := as.WriteAt(ctx, p, gva); err != nil || n != len(p) {
		tb.Fatalf("WriteAt(%v) = %d, %v", gva, n, err)
	}
}

func mustRead(tb testing.TB, as *AddressSpace, gva addr.GVA, n int) []byte {
	tb.Helper()
	p := make([]byte, n)
	if got, err := as.ReadAt(ctx, p, gva); err != nil || got != n {
		tb.Fatalf("ReadAt(%v) = %d, %v", gva, got, err)
	}
	return p
}

func mustSee(tb testing.TB, as *AddressSpace, gva addr.GVA, want []byte) {
	tb.Helper()
	if got := mustRead(tb, as, gva, len(want)); !bytes.Equal(got, want) {
		tb.Fatalf("at %v: %.16q, want %.16q", gva, got, want)
	}
}

func mustFork(tb testing.TB, as *AddressSpace) *AddressSpace {
	tb.Helper()
	child, err := as.Fork()
	if err != nil {
		tb.Fatal(err)
	}
	return child
}

func mustDo(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func mustPin(tb testing.TB, as *AddressSpace, at addr.GVA, pages int, access Access) *Pin {
	tb.Helper()
	p, err := as.Pin(ctx, addr.Range{Start: at, End: at + addr.GVA(pages)*page}, access)
	mustDo(tb, err)
	return p
}

// inBackground runs fn and returns a channel that is closed when it is done.
func inBackground(fn func()) <-chan struct{} { return testutil.Go(fn) }

// parked reports whether done stays open while others have time to run.
func parked(done <-chan struct{}) bool {
	select {
	case <-done:
		return false
	case <-time.After(30 * time.Millisecond):
		return true
	}
}

func mustEnd(tb testing.TB, what string, done <-chan struct{}) {
	tb.Helper()
	testutil.Proceeds(tb, done, what)
}

func TestMain(m *testing.M) { testutil.Main(m) }
