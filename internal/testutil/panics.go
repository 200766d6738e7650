package testutil

import "testing"

// Panics fails t if fn returns: it is to panic. What says why.
func Panics(t testing.TB, what string, fn func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	fn()
}
