package inject

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Point is a place where the library asks for something that may be refused.
// Safe for concurrent use.
type Point struct {
	name   string       // immutable
	failed atomic.Int64 // how often it has, over all runs
}

// armed is the run that decides; nil outside of tests.
var armed atomic.Pointer[Run]

var registry struct {
	mu     sync.Mutex
	points map[string]*Point // mu
}

// New makes and registers a point. It is called when a package is initialized;
// a name that is taken panics.
func New(name string) *Point {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	if registry.points == nil {
		registry.points = make(map[string]*Point)
	}
	if registry.points[name] != nil {
		panic("inject: there are two points " + name)
	}
	p := &Point{name: name}
	registry.points[name] = p
	return p
}

// Name returns the name of the point.
func (p *Point) Name() string { return p.name }

// Failed returns how often the point has failed in this process.
func (p *Point) Failed() int64 { return p.failed.Load() }

// Err returns the error to fail with, a syscall.Errno, or nil.
func (p *Point) Err() error {
	if r := armed.Load(); r != nil {
		return r.ask(p)
	}
	return nil
}

// Errno is Err for callers without room for an error value; 0 is none.
func (p *Point) Errno() syscall.Errno {
	if r := armed.Load(); r != nil {
		return r.errno(p)
	}
	return 0
}

// Points returns all points of this process in the order of their names.
func Points() []*Point {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	var out []*Point
	for _, p := range registry.points {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *Point) int { return strings.Compare(a.name, b.name) })
	return out
}

// Armed reports whether a run is armed, for callers that have to look their
// point up.
func Armed() bool { return armed.Load() != nil }
