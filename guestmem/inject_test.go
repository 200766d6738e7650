package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
)

// R13 under injected failure. A scenario (inject_scenarios_test.go) runs again
// and again, each time with other calls failing (inject_run_test.go). What fails
// has changed nothing, or what it says; its error has a name and reaches what
// was injected; every count is right; the call succeeds when it is made again;
// and at the end nothing is left, neither here nor with the host.

// Calls of the embedder that may fail too.
var (
	atSource = inject.New("test: a source is read")
	atFlush  = inject.New("test: a view's Flush gives nothing back")
	atCtx    = inject.New("test: a context ends")
)

// endingContext ends when its point fails, and is not over by the next call.
type endingContext struct{ context.Context }

func (endingContext) Err() error {
	if atCtx.Err() != nil {
		return context.Canceled
	}
	return nil
}

// failingSource is an object's data. When its point fails, it does so in turn by
// an error, by an error after half of the data, and by being short.
type failingSource struct {
	data  []byte
	fails atomic.Int64
}

func (r *failingSource) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, r.data[min(off, int64(len(r.data))):])
	runtime.Gosched() // a source that takes its time
	err := atSource.Err()
	if err == nil {
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	}
	switch r.fails.Add(1) % 4 {
	case 0:
		clear(p)
		return 0, err
	case 1:
		clear(p[n/2:])
		return n / 2, err
	case 2:
		clear(p[n/2:])
		return n / 2, io.EOF
	}
	clear(p[n/2:])
	return n / 2, nil // against io.ReaderAt, and seen in the wild
}

// stubbornView hands no table back of its own accord, and not always on Flush.
type stubbornView struct{ *recorder }

func (v stubbornView) Flush() {
	if atFlush.Err() == nil {
		v.recorder.Flush()
	}
}

// injectOptions are what scenarios are run in.
type injectOptions struct {
	memory MemoryOptions
	space  SpaceOptions
	view   bool // with a view that checks what it is told
	sparse bool // verify only what has to do with a failure, and the end
	again  int  // how often a failed call is made again with failures going on
	tiny   bool // failures without injection are expected, and end the scenario
}

// injectWorld is a scenario's state and its model: what each mapped page reads as.
type injectWorld struct {
	t      *testing.T
	o      injectOptions
	run    *inject.Run
	m      *Memory
	view   *recorder
	src    *failingSource
	object *Object
	spaces []*AddressSpace
	model  []map[addr.GVA]pageBytes
	pins   []*Pin
	large  bool // the model leaves out the middle of large areas
	dead   bool // stop: what follows needs what failed
}

// pageBytes is what a page reads as: the first four bytes, and all others.
type pageBytes struct{ first, rest byte }

func whole(v byte) pageBytes { return pageBytes{v, v} }

const (
	worldName    = "guestmm-inject"
	injFilePages = 8
)

func newInjectWorld(t *testing.T, o injectOptions, plan inject.Plan) *injectWorld {
	o.memory.Name = worldName
	w := &injectWorld{t: t, o: o, run: inject.Start(plan), src: new(failingSource)}
	for i := range injFilePages {
		w.src.data = append(w.src.data, bytes.Repeat([]byte{fileByte(i)}, int(page))...)
	}
	w.step("new memory", func() error {
		m, err := NewMemory(o.memory)
		if err == nil {
			w.m = m
		} else if left := hostHas(w.t); left != "" {
			w.t.Errorf("NewMemory failed and left %s", left)
		}
		return err
	}, nil)
	if w.dead {
		return w
	}
	if o.view {
		w.view = attachRecorder(t, w.m)
		w.view.hoard = true
		w.m.view = stubbornView{w.view}
	}
	var err error
	w.object, err = w.m.NewFileObject(w.src, injFilePages*int64(page), "file")
	mustDo(t, err)
	return w
}

func fileByte(i int) byte { return 100 + byte(i) }

// hostHas says what the host has of a world's memory: descriptors and mappings.
func hostHas(tb testing.TB) string {
	tb.Helper()
	fds, maps := 0, 0
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.Contains(to, worldName) {
			fds++
		}
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return "" // no /proc: nothing to compare
	}
	maps = strings.Count(string(text), worldName)
	if fds+maps == 0 {
		return ""
	}
	return fmt.Sprintf("%d descriptors and %d mappings", fds, maps)
}

// step makes one call; apply says what it does to the model once it has
// succeeded. If it fails, everything must be as before, and it must succeed when
// nothing fails any more.
func (w *injectWorld) step(name string, op func() error, apply func()) {
	w.t.Helper()
	if w.dead {
		return
	}
	var err error
	started := w.run.Failures()
	for range 1 + w.o.again {
		before, failures := w.areas(), w.run.Failures()
		if err = w.run.During(op); err == nil {
			break
		}
		if w.run.Failures() == failures && !w.o.tiny {
			w.t.Errorf("%s failed though nothing was injected: %v", name, err)
		}
		w.mustBeNamed(name, err)
		if after := w.areas(); after != before {
			w.t.Errorf("%s failed (%v) and changed the areas:\n%s\nwere\n%s", name, err, after, before)
		}
		w.verify(name + ", which failed")
		if w.o.tiny {
			w.dead = true
			return
		}
	}
	if err != nil {
		if err := op(); err != nil {
			w.t.Errorf("%s, again with nothing failing: %v", name, err)
			w.dead = true
			return
		}
	}
	if apply != nil {
		apply()
	}
	if !w.o.sparse || w.run.Failures() > started {
		w.verify(name)
	}
}

// mustBeNamed holds an error against what is promised of all.
func (w *injectWorld) mustBeNamed(name string, err error) {
	w.t.Helper()
	var op *Error
	switch {
	case !errors.As(err, &op):
		w.t.Errorf("%s: %v is no *Error", name, err)
	case errors.Is(err, context.Canceled) && atCtx.Failed() > 0:
	case errors.Is(err, ErrBus) && errors.Is(err, io.ErrUnexpectedEOF): // a short read has no errno
	case w.o.tiny && (errors.Is(err, ErrNoMemory) || errors.Is(err, ErrNoSpace) || errors.Is(err, ErrAgain)):
	case !errors.Is(err, inject.Odd) && !(w.o.view && errors.Is(err, ErrNoMemory)):
		// With a view that keeps its tables, memory may be short in earnest.
		w.t.Errorf("%s: %v does not lead to what was injected", name, err)
	case w.m != nil && !errors.Is(err, ErrNoMemory) && !errors.Is(err, ErrBus) && !strings.HasPrefix(name, "close memory"):
		w.t.Errorf("%s: %v has no name", name, err)
	case errors.Is(err, ErrNoMemory) && !errors.Is(err, syscall.ENOMEM):
		w.t.Errorf("%s: %v is not ENOMEM", name, err)
	}
}

func (w *injectWorld) areas() string {
	var b bytes.Buffer
	for i, as := range w.spaces {
		if as != nil {
			fmt.Fprintf(&b, "space %d:\n%s", i, as)
		}
	}
	return b.String()
}

// verify compares what is resident with the model, and every count.
func (w *injectWorld) verify(after string) {
	w.t.Helper()
	if w.m == nil {
		return
	}
	for i, as := range w.spaces {
		if as != nil {
			w.verifySpace(after, i, as)
		}
	}
	if err := w.m.Check(); err != nil {
		w.t.Errorf("after %s: %v", after, err)
	}
	if w.view != nil {
		w.view.settle(w.t)
	}
	if w.t.Failed() {
		w.dead = true
	}
}

func (w *injectWorld) verifySpace(after string, i int, as *AddressSpace) {
	w.t.Helper()
	if n := as.Stats().MappedBytes / page; n != uint64(len(w.model[i])) && !w.large && !w.t.Failed() {
		w.t.Errorf("after %s: space %d has %d pages mapped, want %d:\n%s", after, i, n, len(w.model[i]), as)
	}
	var b [page]byte
	for gva, want := range w.model[i] {
		if as.leafEntry(gva) == 0 && (want == whole(0) || want.rest >= fileByte(0)) {
			continue // as it was mapped, and is to stay untouched
		}
		_, err := as.ReadAt(ctx, b[:], gva)
		switch {
		case err != nil && w.o.tiny && errors.Is(err, ErrNoMemory):
			continue
		case err != nil:
			w.t.Errorf("after %s: space %d at %v: %v", after, i, gva, err)
			continue
		}
		if got := (pageBytes{b[0], b[4]}); got != want || !isUniform(b[:4]) || !isUniform(b[4:]) {
			w.t.Errorf("after %s: space %d at %v reads %d, want %d", after, i, gva, got, want)
		}
	}
}

// isUniform reports whether all bytes are the same.
func isUniform(b []byte) bool { return bytes.Equal(b[1:], b[:len(b)-1]) }

// ---- operations

func (w *injectWorld) newSpace() {
	w.step("new address space", func() error {
		as, err := w.m.NewAddressSpace(w.o.space)
		if err == nil {
			as.SetBreak(injHeap)
			w.addSpace(as, -1)
		}
		return err
	}, nil)
}

func (w *injectWorld) addSpace(as *AddressSpace, from int) {
	w.spaces = append(w.spaces, as)
	m := make(map[addr.GVA]pageBytes)
	if from >= 0 {
		for gva, v := range w.model[from] {
			m[gva] = v
		}
	}
	w.model = append(w.model, m)
}

// write writes whole pages of v, and what it reports as done is in the model.
func (w *injectWorld) write(space int, gva addr.GVA, n int, v byte) {
	w.writeTo(space, gva, n, v, false)
}

func (w *injectWorld) writeShared(space int, gva addr.GVA, n int, v byte) {
	w.writeTo(space, gva, n, v, true)
}

func (w *injectWorld) writeTo(space int, gva addr.GVA, n int, v byte, shared bool) {
	w.t.Helper()
	done, data := 0, bytes.Repeat([]byte{v}, n*int(page))
	w.step(fmt.Sprintf("write %d to space %d at %v", v, space, gva), func() error {
		k, err := w.spaces[space].WriteAt(endingContext{ctx}, data[done:], gva+addr.GVA(done))
		if k%int(page) != 0 {
			w.t.Errorf("write stopped %d bytes into a page", k%int(page))
		}
		for end := done + k; done < end; done += int(page) {
			for i := range w.model {
				if i == space || shared && w.model[i] != nil {
					w.model[i][gva+addr.GVA(done)] = whole(v)
				}
			}
		}
		return err
	}, nil)
}

// end closes everything and looks for leaks.
func (w *injectWorld) end() {
	w.t.Helper()
	if w.m == nil {
		return
	}
	if !w.dead {
		w.verify("the scenario")
	}
	for _, p := range w.pins {
		p.Release()
	}
	for i := range w.spaces {
		w.closeSpace(i)
	}
	if w.object != nil {
		w.object.Close()
	}
	if w.view != nil {
		w.view.Flush()
	}
	if err := w.m.Check(); err != nil {
		w.t.Errorf("at the end: %v", err)
	}
	if s := w.m.Stats(); s.FramesInUse != 0 || s.Tables != 0 || s.ObjectPages != 0 || s.Quarantined != 0 || s.FramesFree != s.FramesTotal {
		w.t.Errorf("left in use at the end: %+v", s)
	}
	w.dead = false
	m := w.m
	w.m = nil // nothing to verify any more
	w.step("close memory", m.Close, nil)
	if left := hostHas(w.t); left != "" {
		w.t.Errorf("the host has %s at the end", left)
	}
}
