package vmarea

import "testing"

// The points at which a test can stop a lookup.
type HookPoint int

const (
	AfterState HookPoint = iota
	AfterTree
	AfterArea
	AfterEnd
)

func (p HookPoint) String() string {
	return [...]string{"afterState", "afterTree", "afterArea", "afterEnd"}[p]
}

// SetReadHook has every lookup call fn at p, until the test ends. No other
// goroutine may be reading when it is called or when the test ends.
func SetReadHook(tb testing.TB, p HookPoint, fn func(*Tree)) {
	old := readHooks
	tb.Cleanup(func() { readHooks = old })
	switch p {
	case AfterState:
		readHooks.afterState = fn
	case AfterTree:
		readHooks.afterTree = fn
	case AfterArea:
		readHooks.afterArea = fn
	case AfterEnd:
		readHooks.afterEnd = fn
	}
}

// Owns reports whether a belongs to t.
func (t *Tree) Owns(a *Area) bool { return a.owner == t.id }

// Sequence returns the tree's sequence.
func (t *Tree) Sequence() uint64 { return t.sequence() }
