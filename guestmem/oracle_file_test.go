package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/guestmm/guestmm/vmarea"
)

// Files that are mapped shared, truncated, and written by calls, on both sides.

const (
	sysPread64   = 17
	sysPwrite64  = 18
	sysFtruncate = 77
)

// memFile is a file of the world's other end: where an object's bytes come from and
// go. Safe for concurrent use.
type memFile struct {
	mu   sync.Mutex
	data []byte
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resize(max(len(f.data), int(off)+len(p)))
	return copy(f.data[off:], p), nil
}

func (f *memFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resize(int(size))
	return nil
}

func (f *memFile) resize(n int) {
	if n <= len(f.data) {
		f.data = f.data[:n]
		return
	}
	f.data = append(f.data, make([]byte, n-len(f.data))...)
}

func (f *memFile) bytes() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.Clone(f.data)
}

// addFile makes the object of a file.
func (w *opWorld) addFile(f worldFile) error {
	if f.view > 0 {
		w.objects, w.sinks = append(w.objects, w.objects[f.view-1]), append(w.sinks, nil)
		return nil
	}
	o := ObjectOptions{Source: bytes.NewReader(f.data), Size: int64(len(f.data)), Name: f.name}
	var sink *memFile
	switch {
	case f.sparse:
		o.Source = nil
	case f.access == ObjectReadWrite:
		sink = &memFile{data: bytes.Clone(f.data)}
		o.Source, o.Sink = sink, sink
	}
	obj, err := w.mem.NewObject(o)
	if err == nil {
		w.objects, w.sinks = append(w.objects, obj), append(w.sinks, sink)
	}
	return err
}

// closeFiles ends the objects, and reports where a sink does not have what its object
// held.
func (w *opWorld) closeFiles() error {
	var errs []error
	for i, o := range w.objects {
		if worldFiles[i].view > 0 {
			continue
		}
		if sink := w.sinks[i]; sink != nil {
			errs = append(errs, o.Sync(ctx, 0, ^uint64(0)), sameBytes(o, sink))
		}
		o.Close()
	}
	w.objects, w.sinks = nil, nil
	return errors.Join(errs...)
}

func sameBytes(o *Object, sink *memFile) error {
	got := sink.bytes()
	if uint64(len(got)) < o.Size() { // it was made longer by a store that nobody kept
		got = append(got, make([]byte, o.Size()-uint64(len(got)))...)
	}
	want := make([]byte, o.Size())
	if _, err := o.ReadAt(ctx, want, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: the sink has other bytes than the object had", o.name)
	}
	return nil
}

// pinsChangingFile reports whether a pin takes a copy of a page that others go on
// writing to (D-pin-copies).
func pinsChangingFile(o op, as *AddressSpace) (found bool) {
	if o.kind != opPin {
		return false
	}
	r := pagesOf(o)
	as.tree.Snapshot().Ascend(r.Start, func(a *vmarea.Area) bool {
		obj, ok := a.Backing.(*Object)
		found = found || ok && obj.tracks() && a.Flags&vmarea.Shared == 0 && a.Start < r.End
		return a.End < r.End
	})
	return found
}

func drawWritable(g *generator, o *op) { o.object = firstWritable + g.intn(writableFiles) }

func drawTruncate(g *generator, o *op) {
	drawWritable(g, o)
	o.off = uint64(g.intn(14)) * page
	if g.intn(2) == 0 {
		o.off += uint64(g.intn(int(page)))
	}
	if g.odd() {
		o.off = []uint64{1 << 63, ^uint64(0), 0, 100 * page}[g.intn(4)]
	}
}

func (w *opWorld) file(o op) *Object { return w.objects[(o.object-1)%len(w.objects)] }

func softTruncate(w *opWorld, _ *AddressSpace, o op) result {
	return result{errno: errnoOf(w.file(o).Truncate(int64(o.off)))}
}

func kernelTruncate(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, args: [7]uint64{sysFtruncate, uint64(k.fds[(o.object-1)%len(k.fds)]), o.off}}
}

func drawFile(g *generator, o *op) {
	drawTruncate(g, o)
	o.off %= 1 << 20
	if o.length = uint64(1 + g.intn(300)); g.intn(3) == 0 {
		o.length = uint64(1 + g.intn(maxCopy))
	}
}

func softFileWrite(w *opWorld, _ *AddressSpace, o op) result {
	n, err := w.file(o).WriteAt(ctx, patternOf(o.data, int(min(o.length, maxCopy))), int64(o.off))
	r := result{value: uint64(n)}
	if n == 0 {
		r.errno = errnoOf(err)
	}
	return r
}

func kernelFileWrite(k *kernelView, o op) kernelCall {
	n := min(o.length, maxCopy)
	return kernelCall{code: callSyscall, value: valueCount, in: patternOf(o.data, int(n)), bufferArg: 2, bufferMapped: true,
		args: [7]uint64{sysPwrite64, uint64(k.fds[(o.object-1)%len(k.fds)]), 0, n, o.off}}
}

func softFileRead(w *opWorld, _ *AddressSpace, o op) result {
	p := make([]byte, min(o.length, maxCopy))
	n, err := w.file(o).ReadAt(ctx, p, int64(o.off))
	r := result{value: uint64(n), data: p[:n]}
	if n == 0 && !errors.Is(err, io.EOF) {
		r.errno = errnoOf(err)
	}
	return r
}

func kernelFileRead(k *kernelView, o op) kernelCall {
	return kernelCall{code: callSyscall, value: valueCount, out: true, bufferArg: 2, bufferMapped: true,
		args: [7]uint64{sysPread64, uint64(k.fds[(o.object-1)%len(k.fds)]), 0, min(o.length, maxCopy), o.off}}
}
