package guestmem

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The frames of an object that has ended are somebody else's, a page table's perhaps:
// who goes on using it is told so, and gets none of them.
func TestEndedObjectIsRefused(t *testing.T) {
	m := newMemory(t, 1<<20)
	as := newSpace(t, m)
	o, err := m.NewObject(ObjectOptions{Size: 2 * int64(page), Name: "o"})
	mustDo(t, err)
	_, err = o.WriteAt(ctx, []byte("of the object"), 0)
	mustDo(t, err)
	at, err := as.Map(ctx, MapOptions{Length: page, Prot: rw, Flags: MapShared, Object: o})
	mustDo(t, err)
	o.Close()
	mustSee(t, as, at, []byte("of the object"))
	if _, err := o.ReadAt(ctx, make([]byte, 4), 0); err != nil {
		t.Errorf("ReadAt while an area keeps the object: %v", err)
	}
	mustDo(t, as.Unmap(at, page))
	newSpace(t, m) // takes the frame for a table

	use := map[string]func() error{
		"Map": func() error {
			_, err := as.Map(ctx, MapOptions{Length: page, Prot: rw, Flags: MapShared, Object: o})
			return err
		},
		"ReadAt":   func() error { _, err := o.ReadAt(ctx, make([]byte, 4), 0); return err },
		"WriteAt":  func() error { _, err := o.WriteAt(ctx, make([]byte, 4), 0); return err },
		"Truncate": func() error { return o.Truncate(0) },
		"Sync":     func() error { return o.Sync(ctx, 0, page) },
	}
	for name, fn := range use {
		if err := fn(); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "o") {
			t.Errorf("%s of an object that has ended: %v, want ErrClosed", name, err)
		}
	}
	if n := m.Stats().ObjectPages; n != 0 {
		t.Errorf("%d pages of objects", n)
	}
	mustCheck(t, m)
}

// Whoever uses an object while another goroutine closes it has it as it was, or is
// refused.
func TestObjectIsClosedBesideItsUse(t *testing.T) {
	m := newMemory(t, 4<<20)
	want := bytes.Repeat([]byte{7}, 64)
	for range 200 {
		o, err := m.NewObject(ObjectOptions{Size: int64(page)})
		mustDo(t, err)
		_, err = o.WriteAt(ctx, want, 0)
		mustDo(t, err)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 4 {
			wg.Go(func() {
				<-start
				buf := make([]byte, len(want))
				if i%2 == 0 {
					_, err := o.ReadAt(ctx, buf, 0)
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil && err != io.EOF || !bytes.Equal(buf, want) {
						t.Errorf("read beside Close: %x, %v", buf, err)
					}
					return
				}
				as, err := m.NewAddressSpace(SpaceOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				defer as.Close()
				at, err := as.Map(ctx, MapOptions{Length: page, Prot: ProtRead, Flags: MapShared, Object: o})
				if errors.Is(err, ErrClosed) {
					return
				}
				if err == nil {
					_, err = as.ReadAt(ctx, buf, at)
				}
				if err != nil || !bytes.Equal(buf, want) {
					t.Errorf("area beside Close: %x, %v", buf, err)
				}
			})
		}
		wg.Go(func() { <-start; o.Close() })
		close(start)
		wg.Wait()
	}
	mustCheck(t, m)
}

func TestClosedMemoryMakesNoObjects(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 1 << 20})
	mustDo(t, err)
	mustDo(t, m.Close())
	if _, err := m.NewObject(ObjectOptions{Size: 1}); !errors.Is(err, ErrClosed) {
		t.Errorf("NewObject of a closed memory: %v", err)
	}
	if _, err := m.NewFileObject(strings.NewReader("x"), 1, "x"); !errors.Is(err, ErrClosed) {
		t.Errorf("NewFileObject of a closed memory: %v", err)
	}
}

func TestSenselessOptions(t *testing.T) {
	m := newMemory(t, 1<<20)
	for want, o := range map[string]SpaceOptions{
		"whole pages": {Lowest: 1, Highest: addr.PageSize},
		"areas":       {MaxAreas: -1},
		"placement":   {Placement: 9},
		"huge leaves": {HugeLeaves: -1},
	} {
		if _, err := m.NewAddressSpace(o); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want ErrInvalid that speaks of %s", o, err, want)
		}
	}
	if _, err := m.AllocSupervisor(-1); !errors.Is(err, ErrInvalid) {
		t.Errorf("AllocSupervisor(-1): %v", err)
	}
	if err := m.AttachView(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("AttachView(nil): %v", err)
	}
}

// A memory is not closed while an object that has ended gives its frames back.
func TestMemoryIsClosedBesideAnObjectsEnd(t *testing.T) {
	for range 100 {
		m, err := NewMemory(MemoryOptions{Size: 1 << 20})
		mustDo(t, err)
		o, err := m.NewObject(ObjectOptions{Size: 64 * int64(page)})
		mustDo(t, err)
		_, err = o.WriteAt(ctx, bytes.Repeat([]byte{7}, 64*int(page)), 0)
		mustDo(t, err)
		var wg sync.WaitGroup
		wg.Go(o.Close)
		for err = m.Close(); errors.Is(err, ErrBusy); err = m.Close() {
			runtime.Gosched()
		}
		wg.Wait()
		mustDo(t, err)
	}
}
