package guestmem

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
)

// physWorld runs a scenario over regions while the calls of a plan fail.
type physWorld struct {
	t    *testing.T
	run  *inject.Run
	m    *Memory
	want map[addr.GPA][]byte // what regions hold, by base
}

// step runs op while calls may fail. An operation that fails has changed
// nothing, and succeeds when it is made again; unless done says that it was
// done all the same and only something of the host's is left for Close to return.
func (w *physWorld) step(what string, op func() error, done func() bool) {
	w.t.Helper()
	before := w.run.Failures()
	err := w.run.During(op)
	if err == nil {
		return
	}
	if w.run.Failures() == before {
		w.t.Fatalf("%s: %v, and no call had failed", what, err)
	}
	var e *Error
	var re *RegionError
	if !errors.As(err, &e) && !errors.As(err, &re) {
		w.t.Errorf("%s: %v does not say which operation failed", what, err)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) && !errors.Is(err, ErrNoMemory) && !errors.Is(err, ErrBus) {
		w.t.Errorf("%s: %v does not reach what failed", what, err)
	}
	if done != nil && done() {
		return
	}
	w.verify(what + " that failed")
	if err := op(); err != nil {
		w.t.Fatalf("%s, made again: %v", what, err)
	}
}

func (w *physWorld) verify(what string) {
	w.t.Helper()
	if w.m.isClosed() {
		return
	}
	if n := len(w.m.Regions()); n != len(w.want) {
		w.t.Errorf("%s: there are %d regions, want %d", what, n, len(w.want))
	}
	mustHold(w.t, w.m, w.want, what)
}

func (w *physWorld) add(o RegionOptions, holds []byte) {
	w.t.Helper()
	w.step("add "+o.Backing.String(), func() error {
		_, err := w.m.AddRegion(o)
		return err
	}, nil)
	w.want[o.Base] = holds
}

func (w *physWorld) write(gpa addr.GPA, p string) {
	w.t.Helper()
	w.step("write", func() error {
		n, err := w.m.WriteAt([]byte(p), gpa)
		if (err == nil) != (n == len(p)) {
			w.t.Errorf("WriteAt = %d, %v", n, err)
		}
		for base, b := range w.want { // what is done is done
			if gpa >= base && uint64(gpa-base) < uint64(len(b)) {
				copy(b[gpa-base:], p[:n])
			}
		}
		return err
	}, nil)
}

func (w *physWorld) discard(gpa addr.GPA, n int) {
	w.t.Helper()
	w.step("discard", func() error { return w.m.Discard(gpa, uint64(n)) }, nil)
	for base, b := range w.want {
		if gpa >= base && uint64(gpa-base) < uint64(len(b)) {
			clear(b[gpa-base:][:n])
		}
	}
}

// scenario makes regions of every kind, uses, discards, seals, clones and
// removes them.
func (w *physWorld) scenario() {
	t := w.t
	const size = 16 * page
	file := testFile(t, size)
	fd, err := unix.MemfdCreate("guestmm-test-foreign", unix.MFD_CLOEXEC)
	mustDo(t, err)
	defer unix.Close(fd)
	mustDo(t, unix.Ftruncate(fd, size))
	hva, _ := foreignMapping(t, size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)

	w.add(RegionOptions{Base: 0, Size: size, NUMA: NUMAPolicy{Mode: NUMAPreferred, Nodes: []int{0}}}, make([]byte, size))
	filled := make([]byte, size)
	copy(filled[page-2:], "filled")
	w.add(RegionOptions{Base: 1 << 20, Size: size, Backing: BackingAnonymous, HugePages: HugeNever, Fill: func(f io.WriterAt) error {
		_, err := f.WriteAt([]byte("filled"), page-2)
		return err
	}}, filled)
	w.add(RegionOptions{Base: 2 << 20, Size: size, Backing: BackingFilePrivate, File: file, Populate: PopulateNow}, filePattern(size))
	w.add(RegionOptions{Base: 3 << 20, Size: size, Backing: BackingForeign, Mapping: hva}, make([]byte, size))
	for base := range w.want {
		w.write(base+page-4, "over two pages")
		w.discard(base+3*page, 2*page)
		w.write(base+3*page, "again")
	}
	w.step("slice", func() error {
		s, err := w.m.Slice(8*page, page, Write)
		if err == nil {
			s.Release()
		}
		return err
	}, nil)
	w.verify("in use")

	r, _ := w.m.RegionAt(3 << 20)
	w.step("remove", func() error { return w.m.RemoveRegion(r) }, func() bool {
		_, there := w.m.RegionAt(3 << 20)
		return !there
	})
	delete(w.want, 3<<20)
	w.verify("after a removal")

	for range 2 {
		var tmpl *Template
		w.step("seal", func() (err error) { tmpl, err = w.m.Seal(); return err }, nil)
		w.closeMemory()
		w.step("clone", func() error {
			c, err := tmpl.Clone(CloneOptions{})
			if err == nil {
				w.m = c
			}
			return err
		}, nil)
		w.verify("a clone")
		w.write(5*page, "the clone's own")
		w.discard(1<<20, page)
		w.step("close template", tmpl.Close, func() bool { return true })
		w.verify("a clone that was used")
	}
	w.closeMemory()
}

// closeMemory closes the memory; what the host did not take back the first time
// it does the second.
func (w *physWorld) closeMemory() {
	w.t.Helper()
	w.step("close", w.m.Close, nil)
}

// R13: each call to the host fails once, wherever it is made: what fails has
// changed nothing, succeeds when it is tried again, and leaves nothing behind.
func TestR13RegionsInjectedFailure(t *testing.T) {
	for n, reached := 0, true; reached; n++ {
		t.Run("", func(t *testing.T) {
			w := &physWorld{t: t, run: inject.Start(inject.Plan{From: n, Until: n + 1}), want: make(map[addr.GPA][]byte)}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("with %v", w.run)
				}
			})
			unchangedHost(t)
			var err error
			w.m, err = NewMemory(MemoryOptions{})
			mustDo(t, err)
			w.scenario()
			if reached = w.run.Failures() > 0; !reached && n < 60 {
				t.Errorf("only %d calls could fail", n)
			}
		})
		if t.Failed() {
			return
		}
	}
	for _, p := range inject.Points() {
		if len(p.Name()) > 8 && p.Name()[:8] == "region: " && p.Failed() == 0 {
			t.Errorf("no step reaches the point %q", p.Name())
		}
	}
}

// A seal that fails after some regions were sealed for good leaves a memory that
// works as before, and can be sealed later.
func TestR13SealFailsMidway(t *testing.T) {
	unchangedHost(t)
	w := &physWorld{t: t, want: make(map[addr.GPA][]byte), m: newPhys(t)}
	w.run = inject.Start(inject.Plan{From: 1, Until: 3, Match: inject.Only("fcntl: add seals", "memfd_create")})
	for i := range addr.GPA(2) {
		mustAdd(t, w.m, RegionOptions{Base: i << 20, Size: 8 * page})
		mustWritePhys(t, w.m, i<<20+page, []byte{1, 2, 3, byte(i)})
		w.want[i<<20] = mustReadPhys(t, w.m, i<<20, 8*page)
	}
	l := &slotModel{}
	mustDo(t, w.m.AttachListener(l))
	slot := w.m.Regions()[0].Slot()
	err := w.run.During(func() error { _, err := w.m.Seal(); return err })
	if err == nil || w.run.Failures() != 2 {
		t.Fatalf("Seal: %v, with %v", err, w.run)
	}
	l.mustEqual(t, w.m)
	w.verify("after the seal failed")
	if r := w.m.Regions()[0]; r.Backing() != BackingTemplate || r.Slot() != slot {
		t.Errorf("the region that was sealed is %v at %v, was at %v", r.Backing(), r.Slot(), slot)
	}
	for base := range w.want {
		w.write(base+2*page-2, "written after")
		w.discard(base+4*page, page)
	}
	w.verify("used after that")
	tmpl := mustSeal(t, w.m)
	w.m.DetachListener(l)
	mustDo(t, w.m.Close())
	w.m = mustClone(t, tmpl, CloneOptions{})
	w.verify("a clone")
	mustDo(t, tmpl.Close())
	mustDo(t, w.m.Close())
}

// A seal that fails while mappings are replaced, and fails to put them back, leaves
// memory that vCPUs and Go code see alike.
func TestR13SealFailsToMapAgain(t *testing.T) {
	for span := 1; span <= 4; span++ {
		for n, reached := 0, true; reached; n++ {
			m := newPhys(t)
			mustAdd(t, m, RegionOptions{Size: 8 * page})
			mustAdd(t, m, RegionOptions{Base: 1 << 20, Size: 8 * page})
			for _, r := range m.Regions() {
				mustWritePhys(t, m, r.Base(), bytes.Repeat([]byte{9}, 8*page))
			}
			// Another mapping keeps the second region's memfd from being sealed.
			b := shareFD(t, m.Regions()[1])
			run := inject.Start(inject.Plan{From: n, Until: n + span, Errno: unix.ENOMEM, Match: inject.Only("region: mmap over", "memfd_create")})
			var tmpl *Template
			err := run.During(func() (err error) { tmpl, err = m.Seal(); return err })
			reached = run.Failures() > 0
			if err == nil {
				mustDo(t, unix.Munmap(b))
				mustDo(t, tmpl.Close())
				continue
			}
			if !errors.Is(err, ErrNoMemory) {
				t.Errorf("Seal = %v, with %v", err, run)
			}
			for i, r := range m.Regions() {
				if got := mustReadPhys(t, m, r.Base()+7*page, 1); got[0] != 9 {
					t.Errorf("region %d has %d after the seal failed, with %v", i, got[0], run)
				}
				r.host.slot[page] = 5 // as a vCPU does
				if got := mustReadPhys(t, m, r.Base()+page, 1); got[0] != 5 {
					t.Errorf("region %d: Go code does not see what a vCPU stores, with %v", i, run)
				}
				mustWritePhys(t, m, r.Base()+2*page, []byte{6})
				if got := r.host.slot[2*page]; got != 6 {
					t.Errorf("region %d: a vCPU does not see what Go code stores, with %v", i, run)
				}
				mustDo(t, m.Discard(r.Base()+page, page))
				if got := mustReadPhys(t, m, r.Base()+page, 1); got[0] != 0 || r.host.slot[page] != 0 {
					t.Errorf("region %d: %d after a discard, with %v", i, got[0], run)
				}
			}
			mustDo(t, unix.Munmap(b))
			tmpl = mustSeal(t, m)
			c := mustClone(t, tmpl, CloneOptions{})
			for _, r := range c.Regions() {
				got := mustReadPhys(t, c, r.Base(), 3*page)
				if got[0] != 9 || got[page] != 0 || got[2*page] != 6 {
					t.Errorf("a clone has %d, %d, %d, with %v", got[0], got[page], got[2*page], run)
				}
			}
			mustDo(t, c.Close())
			mustDo(t, tmpl.Close())
		}
	}
}

// shareFD maps the memfd of a region once more, for writing.
func shareFD(t *testing.T, r *Region) []byte {
	t.Helper()
	fd, off, _ := r.FD()
	b, err := unix.Mmap(fd, int64(off), int(r.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	mustDo(t, err)
	return b
}
