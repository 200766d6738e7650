package lines

import (
	"reflect"
	"unsafe"
)

// words is memory in pieces, each of whole words.
type words []piece

type piece struct {
	at unsafe.Pointer
	n  int // words
}

func (w words) len() (n int) {
	for _, p := range w {
		n += p.n
	}
	return n
}

// load copies all words.
//
//go:norace
func (w words) load(to []uint64) {
	i := 0
	for _, p := range w {
		for k := range p.n {
			// SAFETY: the piece is within an object that p.at keeps alive.
			to[i] = *(*uint64)(unsafe.Add(p.at, 8*k))
			i++
		}
	}
}

// compare adds the lines of the words that differ. Others may be writing them: a
// word is loaded whole, and any value that is not the old one will do.
//
//go:norace
func (w words) compare(before []uint64, changed Set) {
	i := 0
	for _, p := range w {
		for k := range p.n {
			// SAFETY: as in load.
			at := unsafe.Add(p.at, 8*k)
			if *(*uint64)(at) != before[i] {
				changed[uintptr(at)&^(lineSize-1)] = struct{}{}
			}
			i++
		}
	}
}

// walker goes along pointers.
type walker struct {
	found words
	bytes int
	seen  map[seen]struct{}
	queue []reflect.Value // pointers
}

type seen struct {
	at unsafe.Pointer
	t  reflect.Type
}

func reach(roots []any) words {
	w := walker{seen: make(map[seen]struct{})}
	for _, root := range roots {
		w.visit(reflect.ValueOf(root))
	}
	// Breadth first: what is near the root is what operations touch.
	for len(w.queue) > 0 && w.bytes < maxWatched {
		next := w.queue[0]
		w.queue = w.queue[1:]
		w.object(next)
	}
	return w.found
}

// object adds what a pointer points to.
func (w *walker) object(ptr reflect.Value) {
	t := ptr.Type().Elem()
	at := ptr.UnsafePointer()
	key := seen{at, t}
	if _, ok := w.seen[key]; ok {
		return
	}
	w.seen[key] = struct{}{}
	w.add(at, t.Size())
	w.visit(reflect.NewAt(t, at).Elem())
}

func (w *walker) add(at unsafe.Pointer, size uintptr) {
	skip := -uintptr(at) & 7
	if size < skip+8 {
		return
	}
	n := int(size-skip) / 8
	// SAFETY: skip and the n words after it are within the size bytes at at.
	w.found = append(w.found, piece{unsafe.Add(at, skip), n})
	w.bytes += 8 * n
}

// visit queues the pointers within v.
func (w *walker) visit(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.queue = append(w.queue, v)
		}
	case reflect.Interface:
		if !v.IsNil() {
			w.visit(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.visit(v.Field(i))
		}
	case reflect.Array:
		for i := range min(v.Len(), 1024) {
			w.visit(v.Index(i))
		}
	case reflect.Slice:
		w.slice(v)
	}
}

func (w *walker) slice(v reflect.Value) {
	t := v.Type().Elem()
	size := uintptr(v.Len()) * t.Size()
	if v.Len() == 0 || size > maxSlice {
		return
	}
	at := v.UnsafePointer()
	key := seen{at, v.Type()}
	if _, ok := w.seen[key]; ok {
		return
	}
	w.seen[key] = struct{}{}
	w.add(at, size)
	for i := range v.Len() {
		w.visit(v.Index(i))
	}
}
